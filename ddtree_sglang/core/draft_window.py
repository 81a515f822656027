"""What a drafter sees that reads the last W tokens of each request's context alone.

Its keys and values stay where they are, in the slots that target and drafter share. What changes is the table of slots
by which its attention finds them: a table of its own, whose row begins at the first token that is seen. Keys were
rotated at their own positions, so attention over the shortened row is attention over the last tokens of the context.
This is SGLang's compact draft cache (speculative/dflash_worker_v2.py, `_compute_compact_draft_seq_lens` and
`_rebuild_compact_draft_cache`).
"""

from __future__ import annotations

import torch


def window_starts(prefix_lens: torch.Tensor, window: int, page_size: int) -> torch.Tensor:
    """First position that the drafter sees of each request: a page's first, at most W tokens before the prefix's end.

    Attention backends find a page of a row by the place in the row, so rows begin with whole pages. That keeps up to
    `page_size` - 1 tokens more in sight.

    Args:
        prefix_lens: `[B]` int64, committed lengths.
        window: W, in tokens.
        page_size: tokens of a page of the KV pool.

    Returns:
        `[B]` int64.
    """
    starts = (prefix_lens - window).clamp(min=0)
    return starts if page_size == 1 else starts - starts % page_size


def copy_windows(
    seen: torch.Tensor,  # [rows, row_len] int32, the drafter's own table; written
    req_to_token: torch.Tensor,  # [rows, row_len] int32, slot of each position of each row
    req_pool_indices: torch.Tensor,  # [B] int32 or int64, row of each request
    starts: torch.Tensor,  # [B] int64, first position that is seen
    width: int,  # slots to copy, at least the longest window and the block behind it
) -> None:
    """Let each request's row of `seen` begin with the slot at its start.

    Slots of a block follow those of the prefix in a row, so one copy brings both. Places behind a row's end get its
    last slot; they lie behind the block too, where nothing is read.
    """
    rows = req_pool_indices.to(torch.int64).unsqueeze(1)
    steps = torch.arange(min(width, seen.shape[1]), device=starts.device)
    positions = (starts.unsqueeze(1) + steps).clamp(max=req_to_token.shape[1] - 1)
    seen[rows, steps] = req_to_token[rows, positions]
