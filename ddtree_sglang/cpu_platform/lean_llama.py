"""The Llama layer loop without its bookkeeping, for the one case that a CPU serves: one rank, plain weights.

SGLang's decoder layers choose at every step between sharded, fused and quantised ways to add, gather and normalise.
On a GPU that Python runs ahead of the kernels; here nothing hides it, and at one token it costs as much as a sixth of
the forward pass. This module runs the same operations on the same modules' weights in the same order. A model that is
anything but plain keeps SGLang's own loop. Installed by the platform's `post_load_model` hook.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

from ddtree_sglang.cpu_platform.attention.backend import DDTreeCpuAttnBackend
from ddtree_sglang.cpu_platform.operators import rms_norm, rotary_embedding, silu_and_mul

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layer:
    """The parts of one `LlamaDecoderLayer`."""

    input_norm: Any
    qkv: Any
    qkv_sizes: tuple[int, int, int]
    rotary: Any
    attention: Any
    output: Any
    post_norm: Any
    gate_up: Any
    down: Any


def install(model: Any) -> bool:
    """Give `model` (a `LlamaForCausalLM`) the lean loop if it is plain; True when installed."""
    inner = getattr(model, "model", None)
    if inner is None or not _is_plain(inner):
        return False
    layers = tuple(_parts(layer) for layer in inner.layers)
    original = inner.forward

    def forward(
        self: Any,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        input_embeds: torch.Tensor | None = None,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        from sglang.srt.model_executor.forward_context import get_attn_backend

        backend = get_attn_backend()
        if pp_proxy_tensors is not None or not isinstance(backend, DDTreeCpuAttnBackend):
            return original(input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
        hidden = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        return _run(self, layers, hidden, positions, forward_batch, backend)

    inner.forward = MethodType(forward, inner)
    logger.info("CPU platform: lean layer loop installed for %s", type(inner).__name__)
    return True


def _run(
    model: Any,
    layers: tuple[_Layer, ...],
    hidden: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    backend: DDTreeCpuAttnBackend,
) -> Any:
    """All layers and the last norm: `hidden [M, H]` -> `[M, H]`, alone or in a pair with the captured states."""
    from sglang.srt.layers.aux_hidden_states import AuxHiddenStateList

    captured = AuxHiddenStateList()
    capture_at = frozenset(model.layers_to_capture)
    attend = backend.forward_decode if forward_batch.forward_mode.is_decode() else backend.forward_extend
    residual: torch.Tensor | None = None
    normed: Any
    for index, layer in enumerate(layers):
        if residual is None:
            residual, normed = hidden, rms_norm(layer.input_norm, hidden)
        else:
            normed, residual = rms_norm(layer.input_norm, hidden, residual)
        if index in capture_at:
            captured.capture(residual, owned=residual is not hidden)
        projected = _product(layer.qkv, normed)
        query, key, value = projected.split(layer.qkv_sizes, dim=-1)
        query, key = rotary_embedding(layer.rotary, positions, query, key)
        mixed = _attend(attend, layer.attention, query, key, value, forward_batch)
        hidden = _product(layer.output, mixed)
        normed, residual = rms_norm(layer.post_norm, hidden, residual)
        widened = _product(layer.gate_up, normed)
        hidden = _product(layer.down, silu_and_mul(None, widened))
    normed, _ = rms_norm(model.norm, hidden, residual)
    return (normed, captured) if captured else normed


def _product(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer's product without its choice between sharded and gathered ways."""
    result: torch.Tensor = linear.quant_method.apply(linear, x, linear.bias)
    return result


def _attend(
    attend: Any, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forward_batch: Any
) -> torch.Tensor:
    keys = key.unflatten(1, (layer.tp_k_head_num, layer.qk_head_dim))
    values = value.unflatten(1, (layer.tp_v_head_num, layer.v_head_dim))
    return attend(query, keys, values, layer, forward_batch)


def _is_plain(inner: Any) -> bool:
    """One rank, no quantisation, no adapters or hooks, and exactly the classes that the loop was written for."""
    from sglang.srt.models.llama import LlamaDecoderLayer, LlamaModel
    from sglang.srt.runtime_context import get_lora, get_observability, get_parallel

    if type(inner) is not LlamaModel or get_parallel().tp_size != 1 or get_parallel().pp_size != 1:
        return False
    if get_observability().forward_hooks or get_lora().enable_lora:
        return False
    return all(
        type(layer) is LlamaDecoderLayer and _has_plain_linears(layer) and _has_plain_rotation(layer)
        for layer in inner.layers
    )


def _has_plain_rotation(layer: Any) -> bool:
    """Rotated by one table of sines: the scaled kinds fill it otherwise, LongRoPE has two and chooses."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    rotary = layer.self_attn.rotary_emb
    return isinstance(rotary, RotaryEmbedding) and type(rotary).forward_native is RotaryEmbedding.forward_native


def _has_plain_linears(layer: Any) -> bool:
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    return all(type(linear.quant_method) is UnquantizedLinearMethod for linear in linears)


def _parts(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=layer.input_layernorm,
        qkv=attention.qkv_proj,
        qkv_sizes=(attention.q_size, attention.kv_size, attention.kv_size),
        rotary=attention.rotary_emb,
        attention=attention.attn,
        output=attention.o_proj,
        post_norm=layer.post_attention_layernorm,
        gate_up=mlp.gate_up_proj,
        down=mlp.down_proj,
    )
