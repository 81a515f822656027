"""What policy "adaptive" keeps of rounds: what was decided, what the host learns later, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from ddtree_sglang.core.honest_probs import RoundTrees
from ddtree_sglang.core.round_loops import Floats

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from ddtree_sglang.core.acceptance import AcceptedPath
    from ddtree_sglang.core.draft_tree import DraftTree


class Decision(NamedTuple):
    """What a round does, and why."""

    num_nodes: int
    tokens: float  # expected of all requests together, the target's own included
    seconds: float  # expected of the round; 0 before the first measurement
    is_try: bool  # not what seems best: to measure it

    @property
    def name(self) -> str:
        """In a word or two, for traces and metrics."""
        return ("plain" if self.num_nodes == 1 else "tree") + (" (try)" if self.is_try else "")


class Measured(NamedTuple):
    """What a round took, from its beginning to the next one's."""

    seconds: float
    expected_seconds: float  # 0 before the first measurement
    rounds_ago: int  # of the round that begins now


class RoundRecord(NamedTuple):
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
        for nodes in path:
            if nodes[0]:
                raise RuntimeError(
                    f"a round's paths must begin at node 0, got {nodes[0]}: the host reads a round "
                    "that the device has not finished; serve with another --speculative-ddtree-policy and report it"
                )
        return path


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_cpu else tensor.to("cpu", non_blocking=True)


def host_trees(logprobs: torch.Tensor, parents: torch.Tensor, depths: torch.Tensor) -> RoundTrees:
    """Trees in the host's memory as arrays."""
    return RoundTrees(logprobs.numpy(), parents.numpy(), depths.numpy())


class Narrowed(NamedTuple):
    """Trees that were looked at on the host, and what was expected of them."""

    trees: RoundTrees
    num_nodes: int  # that are verified of each
    curves: Floats  # [B, W] drafted tokens


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
