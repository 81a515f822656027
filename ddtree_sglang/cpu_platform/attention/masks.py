"""Which key may a query attend: boolean masks for a window of queries at the end of each request.

Queries and keys are padded to the longest request of the batch; N is the number of the window's tokens. Key column
c < prefix_len is the c-th cached token; column prefix_len + j is the window's j-th token. True = may attend, as
everywhere in this package. Torch only: it knows neither the KV pool nor SGLang.
"""

from __future__ import annotations

import torch


def window_mask(
    prefix_lens: torch.Tensor,  # [B] int64, tokens cached before the window
    window_allow: torch.Tensor,  # [B, Q, N] or [1, Q, N] bool, which window token each query may attend
    num_keys: int,  # L, at least max(prefix_lens) + N
) -> torch.Tensor:
    """`[B, Q, L]` bool: prefix columns True, window columns as given, padding columns False."""
    batch_size = prefix_lens.shape[0]
    num_queries, num_nodes = window_allow.shape[-2:]
    columns = torch.arange(num_keys, device=prefix_lens.device)
    offsets = columns[None, :] - prefix_lens[:, None]  # [B, L], window index of each column
    inside = (offsets >= 0) & (offsets < num_nodes)
    index = offsets.clamp(0, num_nodes - 1)[:, None, :].expand(batch_size, num_queries, num_keys)
    window = window_allow.expand(batch_size, num_queries, num_nodes).gather(2, index)
    return torch.where(inside[:, None, :], window, offsets[:, None, :] < 0)


def causal_window(num_queries: int, device: torch.device) -> torch.Tensor:
    """`[1, Q, Q]` bool: each window token sees itself and the tokens before it."""
    return torch.ones(num_queries, num_queries, dtype=torch.bool, device=device).tril_()[None]


def full_window(num_queries: int, device: torch.device) -> torch.Tensor:
    """`[1, Q, Q]` bool: every window token sees the whole window (a diffusion drafter's block)."""
    return torch.ones(1, num_queries, num_queries, dtype=torch.bool, device=device)


def window_from_flat_mask(
    custom_mask: torch.Tensor,  # 1-D bool, in one of two layouts
    prefix_lens: list[int],  # B host integers
    num_nodes: int,  # N
) -> torch.Tensor:
    """`[B, N, N]` bool: the window columns of SGLang's flat tree mask.

    The mask is in FlashInfer's layout, per request N rows of prefix_len + N, and may be longer (padding); or it is the
    window alone, per request N rows of N (SGLang's `QLEN_ONLY`).

    Raises:
        ValueError: the mask is shorter than either layout needs.
    """
    batch_size = len(prefix_lens)
    flat = custom_mask.reshape(-1)
    full_size = sum(num_nodes * (length + num_nodes) for length in prefix_lens)
    if flat.numel() == batch_size * num_nodes * num_nodes:
        return flat.view(batch_size, num_nodes, num_nodes).bool()
    if flat.numel() < full_size:
        raise ValueError(
            f"custom_mask must hold at least {full_size} cells for prefix lengths {prefix_lens} and "
            f"{num_nodes} nodes, got {flat.numel()}; pass the whole FlashInfer layout or the window cells alone."
        )
    windows, start = [], 0
    for length in prefix_lens:
        row_len = length + num_nodes
        rows = flat[start : start + num_nodes * row_len].view(num_nodes, row_len)
        windows.append(rows[:, length:])
        start += num_nodes * row_len
    return torch.stack(windows).bool()


def sliding_mask(
    query_positions: torch.Tensor,  # [B, Q] int64, positions in the sequence
    key_positions: torch.Tensor,  # [B, L] int64; tree nodes of one depth share a position
    window_size: int,
) -> torch.Tensor:
    """`[B, Q, L]` bool: keys at most `window_size` positions before the query (SGLang counts inclusively)."""
    return key_positions[:, None, :] >= query_positions[:, :, None] - window_size


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn True = may attend into the 0 / -inf bias that the CPU kernel adds to its scores."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(allowed.logical_not(), float("-inf"))
