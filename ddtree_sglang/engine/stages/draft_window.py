"""`--speculative-draft-window-size`: the drafter reads the last W tokens of a context, the target all of it.

SGLang gives the drafter a table of slots of its own (speculative/dflash_worker_v2.py, `alloc_memory_pool`). Nothing in
it outlives a round: each writes the rows of its requests anew, so retractions, aborts and prefix hits leave no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddtree_sglang.core.draft_window import copy_windows, window_starts


@dataclass(frozen=True, slots=True)
class DraftWindow:
    """The windows of a server's drafter."""

    size: int  # W, in tokens
    page_size: int
    req_to_token: torch.Tensor  # [rows, row_len] int32, the target's slots by position
    seen: torch.Tensor  # [rows, row_len] int32, the drafter's own table

    @classmethod
    def of(cls, size: int | None, page_size: int, target: Any, drafter: Any) -> DraftWindow | None:
        """From both models' runners, whose pools are there by now; None without a window.

        Raises:
            ValueError: the drafter's table has fewer rows than the target's.
        """
        if size is None:
            return None
        req_to_token, seen = target.req_to_token_pool.req_to_token, drafter.req_to_token_pool.req_to_token
        if len(seen) < len(req_to_token):
            raise ValueError(
                f"the drafter's table of slots needs a row for each of the target's {len(req_to_token)}, got "
                f"{len(seen)}; remove --speculative-draft-window-size."
            )
        return cls(size, page_size, req_to_token, seen)

    @property
    def longest(self) -> int:
        """Most tokens of a prefix that are seen."""
        return self.size + self.page_size - 1

    def open(
        self, req_pool_indices: torch.Tensor, prefix_lens: torch.Tensor, max_prefix_len: int | None, block_size: int
    ) -> torch.Tensor:
        """Write the rows of a round's requests, and return how much of each prefix is seen, `[B]` int64.

        Args:
            req_pool_indices: `[B]` int32 or int64, row of each request.
            prefix_lens: `[B]` int64, committed lengths.
            max_prefix_len: a bound on them that the host knows, None if it knows none.
            block_size: R, the tokens of a block, whose slots follow the prefix's.
        """
        starts = window_starts(prefix_lens, self.size, self.page_size)
        longest = self.longest if max_prefix_len is None else min(self.longest, max_prefix_len)
        copy_windows(self.seen, self.req_to_token, req_pool_indices, starts, longest + block_size)
        return prefix_lens - starts

    def exact_lens(self, prefix_lens: torch.Tensor) -> torch.Tensor:
        """What `open` returns, of lengths that the host knows; no table is written."""
        return prefix_lens - window_starts(prefix_lens, self.size, self.page_size)
