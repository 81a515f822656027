"""Which key may a query attend: boolean masks for a window of queries at the end of each request.

Dimension letters: B requests, Q queries per request (padded), L keys per request (padded), N window nodes.
Key column c < prefix_len is the c-th cached token; column prefix_len + j is the window's j-th token. True =
may attend, as everywhere in this package. Torch only: it knows neither the KV pool nor SGLang.
"""

from __future__ import annotations

import torch


def window_mask(
    prefix_lens: torch.Tensor,
    window_allow: torch.Tensor,
    num_keys: int,
) -> torch.Tensor:
    """Place each request's window mask behind its prefix.

    Args:
        prefix_lens: `[B] int64`, tokens cached before the window.
        window_allow: `[B, Q, N] bool` (or `[1, Q, N]`), which window token each query may attend.
        num_keys: L, at least `max(prefix_lens) + N`.

    Returns:
        `[B, Q, L] bool`: prefix columns True, window columns as given, padding columns False.
    """
    batch_size = prefix_lens.shape[0]
    num_queries, num_nodes = window_allow.shape[-2:]
    columns = torch.arange(num_keys, device=prefix_lens.device)
    offsets = columns[None, :] - prefix_lens[:, None]  # [B, L], window index of each column
    inside = (offsets >= 0) & (offsets < num_nodes)
    index = offsets.clamp(0, num_nodes - 1)[:, None, :].expand(batch_size, num_queries, num_keys)
    window = window_allow.expand(batch_size, num_queries, num_nodes).gather(2, index)
    return torch.where(inside[:, None, :], window, offsets[:, None, :] < 0)


def causal_window(num_queries: int, device: torch.device) -> torch.Tensor:
    """`[1, Q, Q] bool`: each window token sees itself and the tokens before it."""
    return torch.ones(num_queries, num_queries, dtype=torch.bool, device=device).tril_()[None]


def full_window(num_queries: int, device: torch.device) -> torch.Tensor:
    """`[1, Q, Q] bool`: every window token sees the whole window (a diffusion drafter's block)."""
    return torch.ones(1, num_queries, num_queries, dtype=torch.bool, device=device)


def window_from_flat_mask(custom_mask: torch.Tensor, prefix_lens: list[int], num_nodes: int) -> torch.Tensor:
    """Cut the window columns out of SGLang's flat tree mask.

    Args:
        custom_mask: 1-D bool. Either FlashInfer's layout, per request N rows of prefix_len + N, and it may be longer
            (padding); or the window alone, per request N rows of N (SGLang's `QLEN_ONLY`).
        prefix_lens: B host integers.
        num_nodes: N.

    Returns:
        `[B, N, N] bool`.

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
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    window_size: int,
) -> torch.Tensor:
    """`[B, Q, L] bool`: keys at most `window_size` positions before the query (SGLang counts inclusively).

    `query_positions [B, Q] int64` and `key_positions [B, L] int64` are sequence positions; tree nodes of one depth
    share one.
    """
    return key_positions[:, None, :] >= query_positions[:, :, None] - window_size


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn True = may attend into the 0 / -inf bias that the CPU kernel adds to its scores."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(allowed.logical_not(), float("-inf"))
