"""Exact best-first draft trees from one block of per-position distributions (arXiv 2604.12989).

By Proposition 1 of the paper the expected accept length of a tree is the sum of its nodes' path
probabilities under the drafter's factorised law, so the best tree of N - 1 nodes is the N - 1 most probable
prefixes (Proposition 2). Two builders return that same tree, bit for bit:

* `build_draft_tree_heap`: Algorithm 1 of the paper as it stands, one heap per request. The oracle.
* `build_draft_tree`: batched tensor operations, one step per depth and none per node, nothing read back.

Both accumulate a path's score in float32 from the root down, and both use one total order:

    path log-probability descending, then depth ascending, then order of the parent, then candidate rank

Every predecessor that Algorithm 1 needs (the parent, and the sibling ranked just above) comes earlier in
this order even where float32 makes scores equal, so a prefix of the order is always a tree.

Neither builder knows how the distributions were made. Callers must give log-probabilities that descend
along K.
"""

from __future__ import annotations

import ctypes
import heapq
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from ddtree_sglang.core.draft_tree import DraftTree


def build_draft_tree(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, log-softmax over all V, descending along K
    root_ids: torch.Tensor,  # [B] int64, last committed (bonus) token
    num_nodes: int,  # N, root included
) -> DraftTree:
    """Take the N - 1 most probable prefixes of the drafter's factorised distribution, below the root.

    Exact for every K >= 1; with K < N - 1 exact among the prefixes that the K candidates span (Lemma 1: K =
    N - 1 loses nothing). A candidate of log-probability -inf or NaN is never a node; one above 0, which a
    separately rounded log-partition can produce, counts as 0. If fewer prefixes exist, the rest is padding.

    No value goes to the host, so the call can be captured in a CUDA graph after one call outside the
    capture with the same N, D, K and device (which fills a cache of index tables).

    Raises:
        ValueError: a shape, dtype or device is not as annotated, or `num_nodes` is below 1.
    """
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes)
    _, depth, num_candidates = topk_ids.shape
    plan = _tree_plan(num_nodes, depth, num_candidates, topk_ids.device)
    scores, pairs = _best_pairs_per_depth(_usable(topk_logprobs), plan)

    ordered, order = torch.sort(scores, dim=1, descending=True, stable=True)
    logprobs, slots = ordered[:, :num_nodes].contiguous(), order[:, :num_nodes]
    padding = logprobs == -torch.inf
    candidates, depths, parent_slots = _rows_of(plan.pair_table, pairs.gather(1, slots))
    # A slot's place in the final order is its node number.
    node_of_slot = torch.empty_like(order).scatter_(1, order, plan.slot_numbers.expand_as(order))
    parents = node_of_slot.gather(1, parent_slots).masked_fill_(padding, -1)
    token_ids = topk_ids.flatten(1).gather(1, candidates).masked_fill_(padding, 0)
    parents[:, 0] = -1
    token_ids[:, 0] = root_ids
    return _pad(token_ids, parents, depths.masked_fill(padding, 0), logprobs, num_nodes)


def build_draft_tree_heap(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64
    num_nodes: int,  # N, root included
) -> DraftTree:
    """Algorithm 1 of the paper on the host: arguments, result and errors are those of `build_draft_tree`.

    It departs in one point: the score of a next sibling is recomputed from the parent's instead of subtracting
    and adding a candidate's log-probability, because in float32 the latter depends on the route taken to
    the node.
    """
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes)
    ids, logprobs = topk_ids.tolist(), _usable(topk_logprobs).tolist()
    rows = [_heap_rows(ids[b], logprobs[b], num_nodes) for b in range(topk_ids.shape[0])]
    shape, device = (len(rows), num_nodes), topk_ids.device
    token_ids, parents, depths = (
        torch.tensor([node[c] for row in rows for node in row], dtype=torch.int64, device=device).view(shape)
        for c in range(3)
    )
    scores = torch.tensor([node[3] for row in rows for node in row], dtype=torch.float32, device=device)
    token_ids[:, 0] = root_ids
    return DraftTree(token_ids, parents, depths, scores.view(shape))


_Node = tuple[int, int, int, float]  # token id, parent, depth, path log-probability


def _heap_rows(ids: list[list[int]], logprobs: list[list[float]], num_nodes: int) -> list[_Node]:
    """One request's nodes in order of popping, the root first (its token is filled in by the caller)."""
    nodes: list[_Node] = [(0, -1, 0, 0.0)]
    heap: list[tuple[float, int, int, int]] = []  # minus score, depth, parent node, candidate rank

    def push(parent: int, rank: int) -> None:
        _, _, parent_depth, parent_score = nodes[parent]
        if parent_depth < len(ids) and rank < len(ids[0]):
            score = _float32(parent_score + logprobs[parent_depth][rank])
            if score > -torch.inf:
                heapq.heappush(heap, (-score, parent_depth + 1, parent, rank))

    push(0, 0)
    while heap and len(nodes) < num_nodes:
        minus_score, depth, parent, rank = heapq.heappop(heap)
        nodes.append((ids[depth - 1][rank], parent, depth, -minus_score))
        push(parent, rank + 1)  # the next sibling
        push(len(nodes) - 1, 0)  # the first child
    return nodes + [(0, -1, 0, -torch.inf)] * (num_nodes - len(nodes))


def _float32(value: float) -> float:
    """Round to float32. Exact for a sum of two float32 values: float64 keeps more than twice their digits."""
    return ctypes.c_float(value).value


@dataclass(frozen=True)
class _TreePlan:
    """Index tables that depend on sizes alone.

    A pair is (parent by rank within its depth, candidate by rank), both counted from 0. Only pairs that can
    be among the N - 1 best are listed: the pair (i, j) at depth d >= 2 comes after all pairs of no larger
    ranks, (i + 1)(j + 1) with itself, after the i + 1 best nodes of depth d - 1, and after one node of each
    smaller depth. The pairs of all depths are numbered in one sequence. A slot holds one prefix that is kept;
    the slots of all depths are numbered in one sequence, too. The root is pair 0 and slot 0.
    """

    parent_ranks: tuple[torch.Tensor, ...]  # for each depth from 2: [pairs of the depth] int64
    num_pairs: tuple[int, ...]  # for each depth from 1: its pairs
    num_kept: tuple[int, ...]  # for each depth from 1: its slots, at most its pairs
    candidates: torch.Tensor  # [pairs - 1] int64, of each but the root: (depth - 1) * K + candidate rank
    pair_table: torch.Tensor  # [3, pairs] int64, of each: candidate, depth, slot of the parent
    first_pair: torch.Tensor  # [slots] int64, of each: number of its depth's first pair
    slot_numbers: torch.Tensor  # [slots] int64: 0, 1, ...


@lru_cache(maxsize=64)
def _tree_plan(num_nodes: int, depth: int, num_candidates: int, device: torch.device) -> _TreePlan:
    """Make the tables for one set of sizes. Cached, since they cost milliseconds and never change."""
    budget = num_nodes - 1
    # A table made under inference mode could not serve a later caller that differentiates.
    with torch.inference_mode(False):
        candidate_ranks = [torch.arange(min(num_candidates, budget))]
        parent_ranks = [torch.zeros_like(candidate_ranks[0])]
        num_kept = [len(candidate_ranks[0])]
        for d in range(2, min(depth, budget) + 1):
            i, j = torch.meshgrid(torch.arange(num_kept[-1]), torch.arange(num_candidates), indexing="ij")
            possible = (i + 1) * (j + 2) + (d - 2) <= budget
            parent_ranks.append(i[possible])
            candidate_ranks.append(j[possible])
            num_kept.append(min(len(parent_ranks[-1]), budget - d + 1))
        return _assemble_plan(parent_ranks, candidate_ranks, num_kept, num_candidates, device)


def _assemble_plan(
    parent_ranks: list[torch.Tensor],
    candidate_ranks: list[torch.Tensor],
    num_kept: list[int],
    num_candidates: int,
    device: torch.device,
) -> _TreePlan:
    """Number pairs and slots over all depths, and move the tables to the device."""
    num_depths = len(num_kept)
    num_pairs = [len(ranks) for ranks in parent_ranks]
    first_slot = [0] + [1 + sum(num_kept[:d]) for d in range(num_depths)]  # of each depth, the root's first
    first_pair = [0] + [1 + sum(num_pairs[:d]) for d in range(num_depths)]
    root = torch.zeros(1, dtype=torch.int64)
    candidates = torch.cat([d * num_candidates + ranks for d, ranks in enumerate(candidate_ranks)])
    depths = torch.repeat_interleave(torch.arange(num_depths + 1), torch.tensor([1, *num_pairs]))
    parent_slots = torch.cat([root] + [first_slot[d] + ranks for d, ranks in enumerate(parent_ranks)])
    return _TreePlan(
        parent_ranks=tuple(ranks.to(device) for ranks in parent_ranks[1:]),
        num_pairs=tuple(num_pairs),
        num_kept=tuple(num_kept),
        candidates=candidates.to(device),
        pair_table=torch.stack((torch.cat((root, candidates)), depths, parent_slots)).to(device),
        first_pair=torch.repeat_interleave(torch.tensor(first_pair), torch.tensor([1, *num_kept])).to(device),
        slot_numbers=torch.arange(1 + sum(num_kept), device=device),
    )


def _best_pairs_per_depth(logprobs: torch.Tensor, plan: _TreePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the root and each depth's best prefixes: scores `[B, slots]` float32, and pair numbers `[B, slots]` int64.

    Within a depth the pairs are listed parent by parent, and the sort is stable, which makes the tie order.
    """
    batch_size = logprobs.shape[0]
    steps = torch.split(logprobs.flatten(1).index_select(1, plan.candidates), list(plan.num_pairs), dim=1)
    root = plan.slot_numbers[:1].expand(batch_size, 1)
    # At depth 1 the candidates are the prefixes, already in order.
    scores = [logprobs.new_zeros(batch_size, 1), steps[0]]
    pairs = [root, plan.slot_numbers[: plan.num_kept[0]].expand(batch_size, -1)]
    for parents, step, num_kept in zip(plan.parent_ranks, steps[1:], plan.num_kept[1:], strict=True):
        extended = scores[-1].index_select(1, parents) + step
        ordered, index = torch.sort(extended, dim=1, descending=True, stable=True)
        scores.append(ordered[:, :num_kept])
        pairs.append(index[:, :num_kept])
    return torch.cat(scores, dim=1), torch.cat(pairs, dim=1).add_(plan.first_pair)


def _rows_of(table: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Look `columns [B, M]` up in each row of `table [rows, pairs]`: one `[B, M]` tensor per row."""
    return table.index_select(1, columns.flatten()).view(table.shape[0], *columns.shape).unbind(0)


def _pad(
    token_ids: torch.Tensor,
    parents: torch.Tensor,
    depths: torch.Tensor,
    logprobs: torch.Tensor,
    num_nodes: int,
) -> DraftTree:
    """Append padding columns where K and D span fewer than N nodes whatever the values."""
    missing = (0, num_nodes - token_ids.shape[1])
    if missing[1] == 0:
        return DraftTree(token_ids, parents, depths, logprobs)
    return DraftTree(
        token_ids=functional.pad(token_ids, missing, value=0),
        parents=functional.pad(parents, missing, value=-1),
        depths=functional.pad(depths, missing, value=0),
        logprobs=functional.pad(logprobs, missing, value=-torch.inf),
    )


def _usable(topk_logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as both builders read them: NaN as -inf, and nothing above 0.

    Without it a NaN or a value rounded above 0 would put a child before its parent.
    """
    return torch.nan_to_num(topk_logprobs, nan=-torch.inf, posinf=0.0, neginf=-torch.inf).clamp_(max=0.0)


def check_builder_inputs(
    topk_ids: torch.Tensor, topk_logprobs: torch.Tensor, root_ids: torch.Tensor, num_nodes: int
) -> None:
    """Check at the door what costs nothing to check: sizes, dtypes, devices. Never values."""
    if topk_ids.dim() != 3 or 0 in topk_ids.shape[1:]:
        raise ValueError(
            f"topk_ids must be [B, D, K] with D, K >= 1, got shape {tuple(topk_ids.shape)}; "
            "pass the candidates of every drafted position"
        )
    if topk_logprobs.shape != topk_ids.shape:
        raise ValueError(
            f"topk_logprobs must have the shape of topk_ids {tuple(topk_ids.shape)}, "
            f"got {tuple(topk_logprobs.shape)}; take both from one top-k"
        )
    if tuple(root_ids.shape) != (topk_ids.shape[0],):
        raise ValueError(f"root_ids must be [B] = [{topk_ids.shape[0]}], got shape {tuple(root_ids.shape)}")
    for name, tensor, dtype in (
        ("topk_ids", topk_ids, torch.int64),
        ("topk_logprobs", topk_logprobs, torch.float32),
        ("root_ids", root_ids, torch.int64),
    ):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}; convert it before building the tree")
        if tensor.device != topk_ids.device:
            raise ValueError(f"{name} must be on {topk_ids.device} like topk_ids, got {tensor.device}; move it there")
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1 (the root alone), got {num_nodes}; it is tree budget + 1")
