"""Experts of a layer in torch: SGLang's own form, and gpt-oss's, which it has kernels for alone."""

from __future__ import annotations

from typing import Any

import torch


def forward(_method: Any, layer: Any, dispatch_output: Any) -> Any:
    """In the place of `UnquantizedFusedMoEMethod`'s kernels."""
    from sglang.srt.layers.moe.fused_moe_native import fused_moe_forward_native
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

    if getattr(layer, "w13_weight_bias", None) is None:
        return fused_moe_forward_native(layer, dispatch_output)
    weights, ids, _ = dispatch_output.topk_output
    return StandardCombineInput(hidden_states=clamped_experts(layer, dispatch_output.hidden_states, weights, ids))


def clamped_experts(layer: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[T, H] of rows [T, H] and their experts [T, K]: gate and up in turns, both clamped, as gpt-oss has them."""
    config, inner = layer.moe_runner_config, layer.w13_weight_bias.shape[1] // 2
    # For some kernels SGLang keeps inputs before outputs.
    w13, w2 = layer.w13_weight, layer.w2_weight
    w13 = w13 if w13.shape[1] == 2 * inner else w13.mT
    w2 = w2 if w2.shape[2] == inner else w2.mT
    both = torch.einsum("th,tkoh->tko", x, w13[ids]) + layer.w13_weight_bias[ids]
    gate, up = both[..., ::2], both[..., 1::2]
    limit, alpha = config.gemm1_clamp_limit, config.gemm1_alpha
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    hidden = (up + 1) * gate * torch.sigmoid(gate * alpha)
    out = torch.einsum("tki,tkhi->tkh", hidden, w2[ids]) + layer.w2_weight_bias[ids]
    return torch.einsum("tkh,tk->th", out, weights.to(out.dtype))
