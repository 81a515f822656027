"""What the drafter is told of committed tokens: the target's hidden states, as DFLASH tells its chain.

A round of one node commits one token a request, and its drafter's keys cost a dozen operators, whatever their number.
While nothing is drafted nobody reads them. So these rows wait: until a round drafts, a prefill may take over slots, the
batch's requests change, or MOST_ROWS wait. Slots that a request has given back are then written before their next owner
writes them, in the order of rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ddtree_sglang.core.round_commit import RoundCommit
    from ddtree_sglang.core.round_ends import RoundEnds
    from ddtree_sglang.engine.stages.kv_window import RoundWindow

MOST_ROWS = 128
"""Tokens whose features are held at most."""


def may_wait(*, scores_pairs: bool, has_host_cache: bool, mode: str) -> bool:
    """Whether nobody else reads the drafter's keys of a request that goes on, or writes those of its slots' next owner.

    LiLiCorr's head reads an anchor of each token that is written. A host cache copies keys when a request ends. Another
    server sends a next request's keys to slots as soon as they are given back: `mode` is `--disaggregation-mode`.
    """
    return not scores_pairs and not has_host_cache and mode == "null"


class DraftContext:
    """Writes the drafter's keys of one worker."""

    def __init__(self, append: Callable[..., Any], *, waits: bool) -> None:
        """`append`: SGLang's, which writes rows to slots; without `waits` every row is written at once."""
        self._append, self._waits = append, waits
        self._rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count = 0
        self._batch: RoundEnds | None = None  # of the rows that wait

    def extend(self, commit: RoundCommit, window: RoundWindow, hidden_states: torch.Tensor) -> None:
        """The hidden states of the accepted nodes, out of `[B * N, F]` of all."""
        slots, positions = window.context_slots, commit.context_positions.view(-1)
        hidden = hidden_states.index_select(0, commit.context_rows.view(-1))
        if window.num_nodes == 1 and self._waits:
            self._keep(hidden, slots.view(-1), positions, window.ends)
            return
        self._append(
            target_hidden=hidden,
            cache_loc=slots.view(-1),
            cache_loc_2d=slots,
            positions=positions,
            commit_lens=commit.accept_lens,
        )

    def _keep(self, hidden: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, batch: RoundEnds) -> None:
        if batch is not self._batch:
            self.flush()
            self._batch = batch
        self._rows.append((hidden, slots, positions))
        self._count += len(hidden)
        if self._count >= MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, oldest first; those of one batch name no slot twice."""
        if not self._rows:
            return
        hidden, slots, positions = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        self._rows.clear()
        self._count = 0
        self._append(target_hidden=hidden, cache_loc=slots, positions=positions)
