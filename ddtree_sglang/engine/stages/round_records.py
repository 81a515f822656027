"""What policy "adaptive" keeps of rounds: what was decided, what the host learns later, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from ddtree_sglang.core.compiled import compiled
from ddtree_sglang.core.honest_probs import Floats, Ints, RoundTrees

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from ddtree_sglang.core.acceptance import AcceptedPath
    from ddtree_sglang.core.draft_tree import DraftTree

PACE = 0.15
"""How fast a request's curve follows its newest tree."""
FALLS = 0.5
"""What a further node is hoped to bring, of the last one, where one width alone was seen."""
DOUBT, DOUBT_OF_LUCK = 12.0, 30.0
"""Drafted tokens that a request's trees must have promised before its own record counts half: one that keeps less than
usual, and one that keeps more. The latter is mostly luck. Believed as soon, it made what was expected of a round worse
than no record does, and trees too wide (benchmarks/LOG.md, 2026-11-29).
"""


@dataclass
class RequestRecord:
    """What is known of one request."""

    drafted: Floats  # [W] expected drafted tokens by width, followed over its trees
    promised: float = 0.0
    kept: float = 0.0
    seen: int = 1  # widths, from the narrowest on, that a tree was ever looked at for

    def honesty(self, usual: float) -> float:
        """Factor on what its trees promise, `usual` before it has a record: sampled requests keep less than greedy."""
        doubt = DOUBT if self.kept < usual * self.promised else DOUBT_OF_LUCK
        return (doubt * usual + self.kept) / (doubt + self.promised)

    def keep(self, promised: float, kept: float, memory: float) -> None:
        """One more round of drafted tokens."""
        self.promised = memory * self.promised + promised
        self.kept = memory * self.kept + kept

    def follow(self, drafted: Floats, num_seen: int, widths: Ints) -> None:
        """A newer tree, of which the first `num_seen` of `widths` were seen; the others keep their distance.

        The first of them that never was seen is hoped for, or a server that began narrow would stay so: nodes come in
        descending probability, so what each of its further nodes brings goes on falling as it fell.
        """
        self.seen = int(_follow(self.drafted, drafted, num_seen, self.seen, widths))


@compiled("int64(float64[:], float64[:], int64, int64, int64[:])")
def _follow(own: Floats, drafted: Floats, num_seen: int, seen: int, widths: Ints) -> int:
    """See `RequestRecord.follow`; the widths that were ever seen."""
    old = own[num_seen - 1]
    for place in range(num_seen):
        own[place] += PACE * (drafted[place] - own[place])
    own[num_seen:] += own[num_seen - 1] - old
    seen = max(seen, num_seen)
    if num_seen == seen and 1 < num_seen < len(widths):
        last = (own[num_seen - 1] - own[num_seen - 2]) / (widths[num_seen - 1] - widths[num_seen - 2])
        falls = FALLS
        if num_seen > 2 and own[num_seen - 2] > own[num_seen - 3]:
            before = (own[num_seen - 2] - own[num_seen - 3]) / (widths[num_seen - 2] - widths[num_seen - 3])
            falls = min(1.0, last / before)
        hoped = own[num_seen - 1] + (widths[num_seen] - widths[num_seen - 1]) * last * falls
        own[num_seen:] += max(0.0, hoped - own[num_seen])
    return seen


@dataclass(frozen=True)
class Decision:
    """What a round does, and why."""

    num_nodes: int
    tokens: float  # expected of all requests together, the target's own included
    seconds: float  # expected of the round; 0 before the first measurement
    is_try: bool  # not what seems best: to measure it

    @property
    def name(self) -> str:
        """In a word or two, for traces and metrics."""
        return ("plain" if self.num_nodes == 1 else "tree") + (" (try)" if self.is_try else "")


@dataclass(frozen=True)
class Measured:
    """What a round took, from its beginning to the next one's."""

    seconds: float
    expected_seconds: float  # 0 before the first measurement
    rounds_ago: int  # of the round that begins now


@dataclass(frozen=True)
class RoundRecord:
    """A drafted round of which the host learns when it is over; tensors are copies in the host's memory."""

    reqs: Sequence[Req]
    node_limits: Sequence[int]
    accept_index: torch.Tensor  # [B, P]
    tree: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None  # log-probabilities, parents, depths: [B, N] each

    @classmethod
    def of(cls, reqs: Sequence[Req], limits: Sequence[int], tree: DraftTree | None, path: AcceptedPath) -> RoundRecord:
        """Copies that nothing waits for; `reqs` is the batch's list, which changes. No `tree`: it was narrowed."""
        parts = None if tree is None else (_copied(tree.logprobs), _copied(tree.parents), _copied(tree.depths))
        return cls(tuple(reqs), tuple(limits), _copied(path.accept_index), parts)

    def path(self) -> list[list[int]]:
        """`[B, P]`: the nodes accepted, then -1.

        Raises:
            RuntimeError: a path does not begin at its root, so the copies are read before they are there.
        """
        path: list[list[int]] = self.accept_index.tolist()
        if any(nodes[0] for nodes in path):
            raise RuntimeError(
                f"a round's paths must begin at node 0, got {[nodes[0] for nodes in path]}: the host reads a round "
                "that the device has not finished; serve with another --speculative-ddtree-policy and report it"
            )
        return path


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", non_blocking=True)


def host_trees(logprobs: torch.Tensor, parents: torch.Tensor, depths: torch.Tensor) -> RoundTrees:
    """Trees in the host's memory as arrays."""
    return RoundTrees(logprobs.numpy().astype(np.float64), parents.numpy(), depths.numpy())


Narrowed: TypeAlias = tuple[RoundTrees, Floats]
"""Trees as they were cut, and `[B, W]` drafted tokens that were expected of them."""


@dataclass
class Totals:
    """Sums over all rounds of the server."""

    rounds: dict[str, int] = field(default_factory=dict)
    expected_tokens: float = 0.0
    tokens: float = 0.0
    expected_seconds: float = 0.0
    seconds: float = 0.0
    _shown_s: float = field(default=-math.inf, repr=False, compare=False)

    def is_due(self, now: float, least: float) -> bool:
        """Whether somebody who shows them now and then should, `least` seconds after the last time."""
        if now - self._shown_s < least:
            return False
        self._shown_s = now
        return True

    def decided(self, decision: Decision) -> None:
        """One more round."""
        self.rounds[decision.name] = self.rounds.get(decision.name, 0) + 1

    def came_true(self, expected: float, tokens: float) -> None:
        """What one request's drafted round was expected to emit, and what it did; an ended one's is not told."""
        self.expected_tokens += expected
        self.tokens += tokens

    def took(self, expected: float, seconds: float) -> None:
        """What a round was expected to take, and what it did."""
        self.expected_seconds += expected
        self.seconds += seconds
