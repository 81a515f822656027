"""Accept length, the figure of merit of a drafter with its tree: how it is defined and counted.

A round is one request's part in one verify forward. It commits the drafted tokens that the target accepted
and one bonus token, so a round that accepts nothing commits 1. Accept length is committed tokens per round,
the bonus included, which is SGLang's `spec_accept_length` (managers/tokenizer_manager.py). SGLang's accept
rate, which divides by the number of nodes verified, is left out: it falls by construction as a tree grows.

The chain of a tree is the root and the most probable node of each depth: what a drafter without a tree would
propose. Accepted nodes on it are what that chain would have had accepted too, as far as the budget let the
tree hold it, so its accept length estimates the chain's on the same rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.draft_tree import DraftTree


def accept_length(num_tokens: float, num_rounds: float) -> float | None:
    """Tokens per round, bonus included, of requests that got `num_tokens` in `num_rounds`.

    None without a round, as for a server that does not speculate.
    """
    return num_tokens / num_rounds if num_rounds else None


def count_rounds(commit_lens: Sequence[int]) -> int:
    """Rounds that decode an answer, where a round at token i of the answer would commit `commit_lens[i]` >= 1.

    The first round starts at token 0, each other one where the round before it ended; the last round may
    commit more than the answer holds.
    """
    position = num_rounds = 0
    while position < len(commit_lens):
        position += commit_lens[position]
        num_rounds += 1
    return num_rounds


def chain_commit_lens(tree: DraftTree, accepted: AcceptedPath) -> torch.Tensor:
    """`[B]` int64: tokens that the tree's chain would have committed in this round, bonus included."""
    path = accepted.accept_index
    return (chain_nodes(tree).gather(1, path.clamp(min=0)) & (path >= 0)).sum(1)


def chain_nodes(tree: DraftTree) -> torch.Tensor:
    """`[B, N]` bool: the root and the most probable node of each depth, which is the first in node order."""
    index = torch.arange(tree.num_nodes, device=tree.device).expand_as(tree.depths)
    first = torch.full_like(tree.depths, tree.num_nodes)
    # A depth is at most N - 1. Padding has depth 0, where the root comes first.
    first.scatter_reduce_(1, tree.depths, index, "amin")
    return first.gather(1, tree.depths) == index
