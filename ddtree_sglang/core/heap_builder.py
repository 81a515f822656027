"""Algorithm 1 of the paper (arXiv 2604.12989) on the host, one heap per request: the oracle of every builder.

The order of nodes, the law and the argument that the result is the best tree are `tree_builder`'s.
"""

from __future__ import annotations

import ctypes
import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.tree_builder import check_builder_inputs, usable


def build_draft_tree_heap(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64
    num_nodes: int,  # N, root included
    pair_logprobs: torch.Tensor | None = None,  # [B, D, K, K] float32: parent's rank, then the candidate's
) -> DraftTree:
    """Algorithm 1 of the paper on the host: arguments, result and errors are those of `build_draft_tree`.

    It departs in one point: the score of a next sibling is recomputed from the parent's instead of subtracting
    and adding a candidate's log-probability, because in float32 the latter depends on the route taken to
    the node.
    """
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes, pair_logprobs)
    law = usable(topk_logprobs if pair_logprobs is None else pair_logprobs)
    rows = [
        _heap_rows(ids, partial(_row, law=request), pair_logprobs is None, num_nodes)
        for ids, request in zip(topk_ids.tolist(), law.tolist(), strict=True)
    ]
    shape, device = (len(rows), num_nodes), topk_ids.device
    token_ids, parents, depths = (
        torch.tensor([node[c] for row in rows for node in row], dtype=torch.int64, device=device).view(shape)
        for c in range(3)
    )
    scores = torch.tensor([node[3] for row in rows for node in row], dtype=torch.float32, device=device)
    token_ids[:, 0] = root_ids
    return DraftTree(token_ids, parents, depths, scores.view(shape))


_Node = tuple[int, int, int, float]  # token id, parent, depth, path log-probability

_Row = Callable[[int, int], list[float]]
"""Depth of a node and its candidate rank (0 for the root) -> log-probabilities of its children by candidate rank."""


def _row(depth: int, rank: int, law: list[Any]) -> list[float]:
    """Of a request's `[D, K]` or `[D, K, K]` law."""
    row: list[Any] = law[depth]
    return row[rank] if isinstance(row[0], list) else row


def _heap_rows(ids: list[list[int]], row_of: _Row, is_ordered: bool, num_nodes: int) -> list[_Node]:
    """One request's nodes in order of popping, the root first (its token is filled in by the caller)."""
    nodes: list[_Node] = [(0, -1, 0, 0.0)]
    children: list[tuple[list[float], Sequence[int]]] = []  # of each node: the conditionals, and ranks best first
    heap: list[tuple[float, int, int, int, int]] = []  # minus score, depth, parent node, candidate rank, place

    def open_node(rank: int) -> None:
        """Order the children of the newest node and push the first."""
        _, _, depth, score = nodes[-1]
        row = row_of(depth, rank) if depth < len(ids) else []
        ranks: Sequence[int] = range(len(row))
        if not is_ordered:
            ranks = sorted(ranks, key=lambda c: (-_float32(score + row[c]), c))
        children.append((row, ranks))
        push(len(nodes) - 1, 0)

    def push(parent: int, place: int) -> None:
        row, ranks = children[parent]
        if place < len(ranks):
            _, _, depth, parent_score = nodes[parent]
            score = _float32(parent_score + row[ranks[place]])
            if score > -torch.inf:
                heapq.heappush(heap, (-score, depth + 1, parent, ranks[place], place))

    open_node(0)
    while heap and len(nodes) < num_nodes:
        minus_score, depth, parent, rank, place = heapq.heappop(heap)
        nodes.append((ids[depth - 1][rank], parent, depth, -minus_score))
        push(parent, place + 1)  # the next sibling
        open_node(rank)
    return nodes + [(0, -1, 0, -torch.inf)] * (num_nodes - len(nodes))


def _float32(value: float) -> float:
    """Round to float32. Exact for a sum of two float32 values: float64 keeps more than twice their digits."""
    return ctypes.c_float(value).value
