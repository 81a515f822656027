"""Faster torch versions of the small operators between the matrix products.

At one token per request a layer's norms, rotation and activation cost as much in kernel launches as a quarter of
its matrix products. Each function has the signature of the SGLang operator that it stands for and is bound to it
as a method through `BaseFusedOp.register_oot_forward`; anything unusual falls back to SGLang's own
`forward_native`. M is the number of tokens, d the head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ddtree_sglang.cpu_platform import forward_epoch
from ddtree_sglang.cpu_platform.names import DISPATCH_KEY


def rms_norm(
    op: Any,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`layers/layernorm.RMSNorm`: `x [..., H]`; with `residual`, the norm of the sum and the sum.

    The sum is rounded to the input's dtype before it is normalised, as Hugging Face models do.
    """
    if _is_unusual_norm(op) or op.weight.dtype != x.dtype:
        return op.forward_native(x, residual, post_residual_addition, quant_linear)
    if residual is None:
        return functional.rms_norm(x, (op.hidden_size,), op.weight, op.variance_epsilon)
    total = x + residual
    if post_residual_addition is not None:
        total = total + post_residual_addition
    return functional.rms_norm(total, (op.hidden_size,), op.weight, op.variance_epsilon), total


def _is_unusual_norm(op: Any) -> bool:
    return bool(
        op.override_orig_dtype or op.variance_size_override is not None or op.cast_x_before_out_mul or op.fp32_residual
    )


def silu_and_mul(op: Any, x: torch.Tensor) -> torch.Tensor:
    """`layers/activation.SiluAndMul`: `x [..., 2 * size]` -> `silu(first half) * second half`."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def rotary_embedding(
    op: Any,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layers/rotary_embedding/base.RotaryEmbedding`: rotate `query [M, heads * d]` and `key [M, kv_heads * d]`.

    Query and key that lie side by side in one projection are rotated in one go.
    """
    whole_heads = op.is_neox_style and op.rotary_dim == op.head_size
    if not whole_heads or offsets is not None or fused_set_kv_buffer_arg is not None or query.dim() != 2:
        return op.forward_native(positions, query, key, offsets, fused_set_kv_buffer_arg)
    cos, sin = _rotation_rows(op, positions, query.dtype)
    if not _side_by_side(query, key):
        return _rotate(query, cos, sin).flatten(1), _rotate(key, cos, sin).flatten(1)
    split = query.shape[1]
    both = torch.as_strided(query, (query.shape[0], split + key.shape[1]), (query.stride(0), 1))
    rotated = _rotate(both, cos, sin).flatten(1)
    return rotated[:, :split], rotated[:, split:]


def _side_by_side(query: torch.Tensor, key: torch.Tensor) -> bool:
    """True when `key` starts where `query` ends, in every row of one wider tensor."""
    strides = query.stride()
    return (
        strides == key.stride()
        and strides[1] == 1
        and strides[0] >= query.shape[1] + key.shape[1]
        and key.data_ptr() == query.data_ptr() + query.shape[1] * query.element_size()
    )


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x [M, heads * d]` with `cos`, `sin [M, 1, d]` (sine signed) -> `[M, heads, d]`."""
    heads = x.unflatten(1, (-1, cos.shape[-1]))
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((second, first), dim=-1), sin)


def _rotation_rows(op: Any, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`cos` and signed `sin`, `[M, 1, d]` each, looked up once per forward pass and reused by its layers."""
    epoch = forward_epoch.current()
    memo = op.__dict__.get("_ddtree_rows")
    if memo is not None and memo[0] == epoch and memo[1] is positions and memo[2].dtype == dtype:
        return memo[2], memo[3]
    rows = _rotation_table(op, dtype).index_select(0, positions.flatten()).unsqueeze(1)
    cos, sin = rows.chunk(2, dim=-1)
    # Plain dict access: nn.Module.__setattr__ costs more than the lookup that this saves.
    op.__dict__["_ddtree_rows"] = (epoch, positions, cos, sin)
    return cos, sin


def _rotation_table(op: Any, dtype: torch.dtype) -> torch.Tensor:
    """`[max position, 2 * d]`: cos, cos, -sin, sin; rebuilt when SGLang grows its own table."""
    cache = op.cos_sin_cache
    memo = op.__dict__.get("_ddtree_table")
    if memo is None or memo[0] is not cache or memo[1].dtype != dtype:
        cos, sin = cache.to(dtype).chunk(2, dim=-1)
        memo = (cache, torch.cat((cos, cos, -sin, sin), dim=-1))
        op.__dict__["_ddtree_table"] = memo
    return memo[1]


def table_qk_norm_rope_(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    num_q_heads: int,
    num_k_heads: int,
    head_dim: int,
    eps: float,
) -> None:
    """`kernels/ops/attention/table_qk_norm_rope`: norm each head of Q and K, then rotate, in place.

    `qkv [M, (heads + 2 * kv_heads) * d]`; `cos_sin_cache [positions, d]` holds cos then sin. V is left alone.
    """
    heads = num_q_heads + num_k_heads
    part = qkv[:, : heads * head_dim].unflatten(1, (heads, head_dim))
    query = functional.rms_norm(part[:, :num_q_heads], (head_dim,), q_weight, eps)
    key = functional.rms_norm(part[:, num_q_heads:], (head_dim,), k_weight, eps)
    normed = torch.cat((query, key), dim=1).flatten(1).float()
    cos, sin = cos_sin_cache.index_select(0, positions.flatten()).float().unsqueeze(1).chunk(2, dim=-1)
    part.copy_(_rotate(normed, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))


def register_operators() -> None:
    """Bind the functions above to SGLang's operator classes for our dispatch key."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.layers.rotary_embedding.rope_variant import Llama3RotaryEmbedding

    for op_class, forward in (
        (RMSNorm, rms_norm),
        (SiluAndMul, silu_and_mul),
        (RotaryEmbedding, rotary_embedding),
        (Llama3RotaryEmbedding, rotary_embedding),
    ):
        BaseFusedOp.register_oot_forward(op_class, forward, DISPATCH_KEY)
