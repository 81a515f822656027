"""Scaled dot-product attention with shared KV heads, in the form that was measured fastest on CPU cores.

The query heads that share a KV head are laid out as extra query rows of it (*grouped*): no key is repeated
and the CPU flash kernel runs on `kv_heads` heads. Prefill, one request at a time, uses the kernel's own
`enable_gqa`. Of `heads` query heads, group = heads / kv_heads share a KV head.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_uniform(
    query: torch.Tensor,  # [B, Q, heads, d]
    keys: torch.Tensor,  # [B, L, kv_heads, d], any strides with the last one 1
    values: torch.Tensor,  # [B, L, kv_heads, d], likewise
    bias: torch.Tensor | None,  # [B, 1, Q * group, L] or broadcastable, in the query's dtype, rows query-major
    scale: float,  # factor on the scores
) -> torch.Tensor:
    """`[B * Q, heads * d]`, contiguous: attention of Q queries per request over a padded batch of keys."""
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
    query: torch.Tensor,  # [Q, heads, d]
    keys: torch.Tensor,  # [1, L, kv_heads, d]
    values: torch.Tensor,  # [1, L, kv_heads, d]
    bias: torch.Tensor | None,  # [1, 1, Q, L]; None means causal with as many keys as queries
    scale: float,  # factor on the scores
) -> torch.Tensor:
    """`[Q, heads, d]`: attention of one request's new tokens."""
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
