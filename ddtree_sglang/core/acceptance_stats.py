"""The one definition of every acceptance metric. Whoever reports one takes it from here.

A round is one request's part in one verify forward; a batch of B requests makes B rounds.

* accept length: tokens committed per round, the bonus included. A round that accepts nothing commits 1.
* spine: the most probable prefix of each depth, one node per depth. It is the single chain that a drafter
  without a tree would propose. Accepted nodes on it are what that chain would have had accepted too, as far
  as the budget let the tree hold it, so spine accept length estimates the chain's on the same rounds.
* off-spine share: of the accepted drafted tokens, those that only the tree had.
* per-depth acceptance at depth d: of the rounds that accepted at least d - 1 drafts, those that accepted d.
* expected accept length: the drafter's own forecast, 1 + the sum of path probabilities (Proposition 1 of
  arXiv 2604.12989). Compared with accept length it says how well the drafter is calibrated.

Counting stays on the device; only `summarize` reads values back. SGLang's accept rate, which divides by the
number of nodes verified, is left out: it falls by construction as a tree grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.draft_tree import DraftTree


@dataclass(frozen=True)
class AcceptanceSummary:
    """Metrics over some rounds, as plain numbers. Ratios without a denominator are NaN."""

    num_rounds: int
    num_commit_tokens: int  # bonus included
    accept_length: float  # tokens per round, bonus included
    spine_accept_length: float  # tokens per round, bonus included
    expected_accept_length: float  # tokens per round, bonus included
    off_spine_share: float  # of accepted drafted tokens, 0 to 1
    per_depth_acceptance: tuple[float, ...]  # depth 1 first, 0 to 1
    accept_histogram: tuple[int, ...]  # rounds that accepted exactly 0, 1, ... drafted tokens


@dataclass(frozen=True)
class AcceptanceCounts:
    """Sums over rounds, on the device, to add up with `+`. P is the longest path in nodes, root included."""

    accepted: torch.Tensor  # [P] int64, rounds that accepted exactly j drafted tokens
    accepted_on_spine: torch.Tensor  # [P] int64, rounds that accepted exactly j drafted tokens of the spine
    expected_drafts: torch.Tensor  # [] float64, sum of path probabilities of all drafted nodes

    @classmethod
    def empty(cls, max_path_len: int, device: torch.device | str = "cpu") -> AcceptanceCounts:
        """No rounds yet."""
        zeros = torch.zeros(max_path_len, dtype=torch.int64, device=device)
        return cls(zeros, zeros.clone(), torch.zeros((), dtype=torch.float64, device=device))

    def __add__(self, other: AcceptanceCounts) -> AcceptanceCounts:
        """Both sets of rounds together."""
        return AcceptanceCounts(
            self.accepted + other.accepted,
            self.accepted_on_spine + other.accepted_on_spine,
            self.expected_drafts + other.expected_drafts,
        )

    def summarize(self) -> AcceptanceSummary:
        """Read the counts back (on a GPU this waits for it) and divide."""
        histogram: list[int] = self.accepted.tolist()
        num_rounds = sum(histogram)
        num_drafts = sum(j * count for j, count in enumerate(histogram))
        num_on_spine = sum(j * count for j, count in enumerate(self.accepted_on_spine.tolist()))
        reached = [sum(histogram[d:]) for d in range(len(histogram))]
        return AcceptanceSummary(
            num_rounds=num_rounds,
            num_commit_tokens=num_rounds + num_drafts,
            accept_length=_ratio(num_rounds + num_drafts, num_rounds),
            spine_accept_length=_ratio(num_rounds + num_on_spine, num_rounds),
            expected_accept_length=_ratio(num_rounds + float(self.expected_drafts), num_rounds),
            off_spine_share=_ratio(num_drafts - num_on_spine, num_drafts),
            per_depth_acceptance=tuple(_ratio(reached[d], reached[d - 1]) for d in range(1, len(histogram))),
            accept_histogram=tuple(histogram),
        )


def count_round(
    tree: DraftTree,
    accepted: AcceptedPath,
    active: torch.Tensor | None = None,  # [B] bool, False for rows that are no request (batch padding)
) -> AcceptanceCounts:
    """Count one round of a batch. Reads nothing on the host."""
    batch_size, max_path_len = accepted.accept_index.shape
    weight = torch.ones(batch_size, dtype=torch.int64, device=tree.device) if active is None else active.long()
    on_path = accepted.accept_index >= 0
    path_on_spine = spine_nodes(tree).gather(1, accepted.accept_index.clamp(min=0)) & on_path
    zeros = torch.zeros(max_path_len, dtype=torch.int64, device=tree.device)
    drafted = tree.logprobs[:, 1:].double().exp().sum(1)  # padding has probability 0
    return AcceptanceCounts(
        accepted=zeros.scatter_add(0, accepted.num_correct_drafts, weight),
        accepted_on_spine=zeros.scatter_add(0, path_on_spine.sum(1) - 1, weight),  # less the root
        expected_drafts=(drafted * weight).sum(),
    )


def spine_nodes(tree: DraftTree) -> torch.Tensor:
    """[B, N] bool: the root and the most probable node of each depth, which is the first in node order."""
    index = torch.arange(tree.num_nodes, device=tree.device).expand_as(tree.depths)
    first = torch.full_like(tree.depths, tree.num_nodes)
    # A depth is at most N - 1. Padding has depth 0, where the root comes first.
    first.scatter_reduce_(1, tree.depths, index, "amin")
    return first.gather(1, tree.depths) == index


def _ratio(numerator: float, denominator: float) -> float:
    """NaN instead of a division by zero."""
    return numerator / denominator if denominator else float("nan")
