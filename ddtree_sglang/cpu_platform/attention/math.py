"""Scaled dot-product attention with shared KV heads, in the form that was measured fastest on CPU cores.

The query heads that share a KV head are laid out as extra query rows of it (*grouped*): no key is repeated
and the CPU flash kernel runs on `kv_heads` heads. Prefill, one request at a time, uses the kernel's own
`enable_gqa`. Shapes: B requests, Q queries, L keys, `heads` query heads, group = heads / kv_heads, d head size.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_uniform(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention of Q queries per request over a padded batch of keys.

    Args:
        query: `[B, Q, heads, d]`.
        keys, values: `[B, L, kv_heads, d]`, any strides with the last one 1.
        bias: `[B, 1, Q * group, L]` or broadcastable, in the dtype of `query`, rows ordered query-major; or None.
        scale: factor on the scores.

    Returns:
        `[B * Q, heads * d]`, contiguous.
    """
    batch_size, num_queries, num_heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    group = num_heads // kv_heads
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if num_queries == 1:
        grouped = query.view(batch_size, kv_heads, group, head_dim)
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scale)
        return out.reshape(batch_size, num_heads * head_dim)
    grouped = query.view(batch_size, num_queries, kv_heads, group, head_dim).permute(0, 2, 1, 3, 4)
    grouped = grouped.reshape(batch_size, kv_heads, num_queries * group, head_dim)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scale)
    out = out.view(batch_size, kv_heads, num_queries, group, head_dim).permute(0, 2, 1, 3, 4)
    return out.reshape(batch_size * num_queries, num_heads * head_dim)


def attend_span(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention of one request's new tokens; `bias` None means causal with as many keys as queries.

    `query [Q, heads, d]`, `keys`/`values` `[1, L, kv_heads, d]`, `bias [1, 1, Q, L]`; returns `[Q, heads, d]`.
    """
    out = scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=bias,
        is_causal=bias is None,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[2],
    )
    return out[0].transpose(0, 1)
