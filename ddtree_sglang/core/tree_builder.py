"""Exact best-first draft trees from one block of per-position distributions (arXiv 2604.12989).

By Proposition 1 of the paper the expected accept length of a tree is the sum of its nodes' path
probabilities under the drafter's factorised law, so the best tree of N - 1 nodes is the N - 1 most probable
prefixes (Proposition 2). Two builders return that same tree, bit for bit:

* `build_draft_tree_heap`: Algorithm 1 of the paper as it stands, one heap per request. The oracle.
* `build_draft_tree`: batched tensor operations, one step per depth and none per node, no value read on the
host.

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
    _check_inputs(topk_ids, topk_logprobs, root_ids, num_nodes)
    batch_size, depth, num_candidates = topk_ids.shape
    plan = _tree_plan(num_nodes, depth, num_candidates, topk_ids.device)
    scores, pair_index = _best_pairs_per_level(_usable(topk_logprobs), plan)

    best, order = torch.sort(scores, dim=1, descending=True, stable=True)
    num_taken = min(num_nodes - 1, scores.shape[1])
    best, taken = best[:, :num_taken], order[:, :num_taken]
    padding = best == -torch.inf
    pair = pair_index.gather(1, taken)  # [B, num_taken] into the plan's tables

    # Slot s of the concatenated levels became node rank[s] + 1; the extra last column stands for the root.
    rank = torch.zeros(batch_size, scores.shape[1] + 1, dtype=torch.int64, device=topk_ids.device)
    rank.scatter_(1, order, plan.node_numbers.expand_as(order))
    parents = rank.gather(1, plan.parent_slots[pair])
    token_ids = topk_ids.flatten(1).gather(1, plan.candidates[pair])
    return DraftTree(
        token_ids=_with_root(root_ids, token_ids.masked_fill(padding, 0), num_nodes, 0),
        parents=_with_root(-1, parents.masked_fill(padding, -1), num_nodes, -1),
        depths=_with_root(0, plan.depths[pair].masked_fill(padding, 0), num_nodes, 0),
        logprobs=_with_root(0.0, best, num_nodes, -torch.inf),
    )


def build_draft_tree_heap(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, descending along K
    root_ids: torch.Tensor,  # [B] int64
    num_nodes: int,  # N, root included
) -> DraftTree:
    """Algorithm 1 of the paper on the host: same arguments, result and errors as `build_draft_tree`.

    The one departure: the score of a next sibling is recomputed from the parent's instead of subtracting
    and adding a candidate's log-probability, because in float32 the latter depends on the route taken to
    the node.
    """
    _check_inputs(topk_ids, topk_logprobs, root_ids, num_nodes)
    ids, logprobs = topk_ids.tolist(), _usable(topk_logprobs).tolist()
    rows = [_heap_rows(ids[b], logprobs[b], num_nodes) for b in range(topk_ids.shape[0])]
    columns = [torch.tensor([[node[c] for node in row] for row in rows]) for c in range(3)]
    scores = torch.tensor([[node[3] for node in row] for row in rows], dtype=torch.float32)
    device = topk_ids.device
    columns[0][:, 0] = root_ids
    return DraftTree(columns[0].to(device), columns[1].to(device), columns[2].to(device), scores.to(device))


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
    """Index tables that depend on sizes alone. A pair is (parent by rank in its depth, candidate by rank).

    Only pairs that can be among the N - 1 best are listed: with both ranks counted from 0, the pair (i, j)
    at depth d comes after the (i + 1)(j + 1) - 1 pairs of no larger ranks, after the i + 1 best nodes of
    depth d - 1, and after at least one node of each smaller depth.
    """

    level_parents: tuple[torch.Tensor, ...]  # per depth from 2: [Q_d] int64, parent's rank within its depth
    level_pairs: tuple[int, ...]  # per depth: Q_d, number of pairs listed
    level_kept: tuple[int, ...]  # per depth: W_d, how many of them are kept
    candidates: torch.Tensor  # [Q] int64, of each pair: (depth - 1) * K + candidate rank
    depths: torch.Tensor  # [Q] int64, of each pair
    parent_slots: torch.Tensor  # [Q] int64, of each pair: its parent's slot among all kept; W for the root
    pair_offsets: torch.Tensor  # [W] int64, of each kept slot: number of its depth's first pair
    node_numbers: torch.Tensor  # [W] int64: 1, 2, ...


@lru_cache(maxsize=64)
def _tree_plan(num_nodes: int, depth: int, num_candidates: int, device: torch.device) -> _TreePlan:
    """Make the tables for one set of sizes. Cached, since they cost milliseconds and never change."""
    budget = num_nodes - 1
    # A table made under inference mode could not serve a later caller that differentiates.
    with torch.inference_mode(False):
        parent_ranks = [torch.zeros(min(num_candidates, budget), dtype=torch.int64)]
        candidate_ranks = [torch.arange(min(num_candidates, budget))]
        kept = [min(num_candidates, budget)]
        for d in range(2, depth + 1):
            i, j = torch.meshgrid(torch.arange(kept[-1]), torch.arange(num_candidates), indexing="ij")
            possible = (i + 1) * (j + 2) + (d - 2) <= budget
            parent_ranks.append(i[possible])
            candidate_ranks.append(j[possible])
            kept.append(min(int(possible.sum()), budget - (d - 1)) if budget >= d else 0)
            if kept[-1] == 0:
                break
        return _assemble_plan(parent_ranks, candidate_ranks, kept, num_candidates, device)


def _assemble_plan(
    parent_ranks: list[torch.Tensor],
    candidate_ranks: list[torch.Tensor],
    kept: list[int],
    num_candidates: int,
    device: torch.device,
) -> _TreePlan:
    """Concatenate the per-depth tables and move them to the device."""
    num_kept = sum(kept)
    num_pairs = [len(ranks) for ranks in parent_ranks]
    first_slot = [sum(kept[:d]) for d in range(len(kept))]
    first_pair = [sum(num_pairs[:d]) for d in range(len(kept))]
    slots = [torch.full_like(parent_ranks[0], num_kept)]
    slots += [first_slot[d - 1] + parent_ranks[d] for d in range(1, len(kept))]
    candidates = [d * num_candidates + ranks for d, ranks in enumerate(candidate_ranks)]
    return _TreePlan(
        level_parents=tuple(ranks.to(device) for ranks in parent_ranks[1:]),
        level_pairs=tuple(num_pairs),
        level_kept=tuple(kept),
        candidates=torch.cat(candidates).to(device),
        depths=torch.repeat_interleave(torch.arange(1, len(kept) + 1), torch.tensor(num_pairs)).to(device),
        parent_slots=torch.cat(slots).to(device),
        pair_offsets=torch.repeat_interleave(torch.tensor(first_pair), torch.tensor(kept)).to(device),
        node_numbers=torch.arange(1, num_kept + 1, device=device),
    )


def _best_pairs_per_level(logprobs: torch.Tensor, plan: _TreePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep each depth's best prefixes: scores [B, W] float32, and pair numbers [B, W] int64.

    Within a depth the pairs are listed parent by parent, and the sort is stable, which makes the tie order.
    """
    steps = torch.split(logprobs.flatten(1).index_select(1, plan.candidates), list(plan.level_pairs), dim=1)
    scores = [steps[0]]  # depth 1: the candidates themselves, already in order
    pairs = [torch.arange(plan.level_kept[0], device=logprobs.device).expand_as(steps[0])]
    for parents, step, num_kept in zip(plan.level_parents, steps[1:], plan.level_kept[1:], strict=True):
        extended = scores[-1].index_select(1, parents) + step
        ordered, index = torch.sort(extended, dim=1, descending=True, stable=True)
        scores.append(ordered[:, :num_kept])
        pairs.append(index[:, :num_kept])
    return torch.cat(scores, dim=1), torch.cat(pairs, dim=1) + plan.pair_offsets


def _usable(topk_logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as both builders read them: NaN as -inf, and nothing above 0.

    Without it a NaN or a value rounded above 0 would put a child before its parent.
    """
    return torch.nan_to_num(topk_logprobs, nan=-torch.inf, posinf=0.0, neginf=-torch.inf).clamp_(max=0.0)


def _with_root(
    root: torch.Tensor | float, nodes: torch.Tensor, num_nodes: int, padding: float
) -> torch.Tensor:
    """Put the root's value before `nodes` [B, n], and padding after them up to [B, num_nodes]."""
    out = nodes.new_full((nodes.shape[0], num_nodes), padding)
    out[:, 0] = root
    out[:, 1 : 1 + nodes.shape[1]] = nodes
    return out


def _check_inputs(
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
            raise ValueError(
                f"{name} must be {dtype}, got {tensor.dtype}; convert it before building the tree"
            )
        if tensor.device != topk_ids.device:
            raise ValueError(
                f"{name} must be on {topk_ids.device} like topk_ids, got {tensor.device}; move it there"
            )
    if num_nodes < 1:
        raise ValueError(
            f"num_nodes must be at least 1 (the root alone), got {num_nodes}; it is tree budget + 1"
        )
