"""Experts of a layer in torch: SGLang's own form, gpt-oss's, which it has kernels for alone, and Kimi-K3's.

Of Kimi-K3's activation SGLang's own form leaves one of the two bounds out.
"""

from __future__ import annotations

from typing import Any

import torch


def forward(_method: Any, layer: Any, dispatch_output: Any) -> Any:
    """In the place of `UnquantizedFusedMoEMethod`'s kernels."""
    from sglang.srt.layers.moe.fused_moe_native import fused_moe_forward_native
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

    weights, ids, _ = dispatch_output.topk_output
    if not layer.moe_runner_config.is_gated:
        return StandardCombineInput(hidden_states=squared_experts(layer, dispatch_output.hidden_states, weights, ids))
    is_bounded = layer.moe_runner_config.activation == "situ"
    if getattr(layer, "w13_weight_bias", None) is None and not is_bounded:
        return fused_moe_forward_native(layer, dispatch_output)
    experts = bounded_experts if is_bounded else clamped_experts
    return StandardCombineInput(hidden_states=experts(layer, dispatch_output.hidden_states, weights, ids))


def squared_experts(layer: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[T, H] of rows [T, H] and their experts [T, K]: no gate, as Nemotron-H has them."""
    config = layer.moe_runner_config
    hidden = torch.einsum("th,tkih->tki", x, layer.w13_weight[ids]).relu().square()
    out = torch.einsum("tki,tkhi,tk->th", hidden, layer.w2_weight[ids], weights.to(x.dtype))
    return out * config.routed_scaling_factor


def bounded_experts(layer: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[T, H] of rows [T, H] and their experts [T, K]: gate and up one behind the other, as Kimi-K3 has them."""
    config = layer.moe_runner_config
    beta, bound = config.gemm1_alpha, config.gemm1_clamp_limit
    gate, up = torch.einsum("th,tkoh->tko", x, layer.w13_weight[ids]).chunk(2, dim=-1)
    hidden = beta * torch.tanh(gate / beta) * torch.sigmoid(gate) * bound * torch.tanh(up / bound)
    return torch.einsum("tki,tkhi,tk->th", hidden, layer.w2_weight[ids], weights.to(x.dtype))


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
