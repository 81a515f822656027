"""Keys and values of a verify that SGLang's kernel turns and writes itself, in torch: MiMo-V2's on FA3 do so.

The kernel takes bfloat16 alone (kernels/ops/attention/rope.py, `bf16_rope_scale_store`); here any type, so that the
lane goes the way that a GPU goes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from tests.device_lane.module_patches import Patch, on_import, replace

Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Keys `[slots, heads, width]`, values of a width of their own, and the slots of the rows `[T]` int64."""


def install() -> None:
    """Twice is as once."""
    on_import("sglang.srt.layers.rotary_embedding.base", Patch(_write_in_torch))


def take_any_type(module: ModuleType) -> None:
    """Have SGLang's FA3 backend hand its buffers out, whatever their type."""
    backend = module.FlashAttentionBackend
    original = backend.get_fused_kv_write_buffers

    def get_fused_kv_write_buffers(own: Any, layer: Any, forward_batch: Any) -> Buffers | None:
        kept, own.kv_cache_dtype = own.kv_cache_dtype, torch.bfloat16
        try:
            found: Buffers | None = original(own, layer, forward_batch)
        finally:
            own.kv_cache_dtype = kept
        return found

    replace(backend, "get_fused_kv_write_buffers", get_fused_kv_write_buffers, ("self", "layer", "forward_batch"))


def _write_in_torch(module: ModuleType) -> None:
    parameters = ("self", "qkv", "positions", "kv_target", "value_scale")
    replace(module.RotaryEmbedding, "try_bf16_rope_store", _turn_and_write, parameters)


def _turn_and_write(
    rotation: Any, qkv: torch.Tensor, positions: torch.Tensor, kv_target: Buffers | None, value_scale: float
) -> torch.Tensor | None:
    """Turned queries `[T, heads * width]` of packed rows `[T, ...]`; None where another backend has no buffers."""
    if kv_target is None or len(qkv) == 0:
        return None
    keys, values, slots = kv_target
    widths = (keys[0].numel(), values[0].numel())
    query, key, value = qkv.split([qkv.shape[-1] - sum(widths), *widths], dim=-1)
    query, key = rotation(positions, query.clone(), key.clone())
    keys[slots] = key.view(-1, *keys.shape[1:]).to(keys.dtype)
    values[slots] = (value_scale * value).view(-1, *values.shape[1:]).to(values.dtype)
    return query.contiguous()
