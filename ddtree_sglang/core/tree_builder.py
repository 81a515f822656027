"""Exact best-first draft trees from one block of conditional distributions (arXiv 2604.12989).

A drafter proposes K candidates per depth and a law of them: `q(c | d)` of candidate c at depth d, the same after every
parent (DFlash), or `q(c | d, r)` after the candidate of rank r at depth d - 1 (a selector, a Markov table, a lattice of
pairs). At depth 1 the parent is the root. A path's probability Q is the product of its conditionals.

The expected accept length of a tree under that law, the root not counted, is the sum of Q over its nodes: a walk along
a path drawn from the law reaches a node if the path begins with the node's prefix, which has probability Q, and the
expectation of a count is the sum of probabilities (Proposition 1 of the paper, which does not use how Q comes about).
So no N - 1 prefixes have a larger expectation than the N - 1 of largest Q. These are a tree (Proposition 2): every
conditional is at most 1, so a child is never more probable than its parent, and the order below puts the parent first
where they are equal; hence whoever is among the first N - 1 has all ancestors there. That a conditional depends on the
parent changes neither step. What it changes is which predecessors a prefix is known to have (`tree_plan`).

Two builders return that same tree, bit for bit:

* `heap_builder.build_draft_tree_heap`: Algorithm 1 of the paper, one heap per request. The oracle.
* `build_draft_tree`: batched tensor operations, one step per depth and none per node, nothing read back.

Both accumulate a path's score in float32 from the root down, and both use one total order:

    path log-probability descending, then depth ascending, then order of the parent, then candidate rank

Every predecessor that Algorithm 1 needs (the parent, and the sibling just before) comes earlier in this order even
where float32 makes scores equal, so a prefix of the order is always a tree.

Neither builder knows how the distributions were made.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.tree_plan import TreePlan, tree_plan

MANY_SCORES = 2048
"""From so many on, those of all requests of a batch together, a partial selection is faster than a sort."""


def build_draft_tree(
    topk_ids: torch.Tensor,  # [B, D, K] int64, best first
    topk_logprobs: torch.Tensor,  # [B, D, K] float32, log-softmax over all V, descending along K
    root_ids: torch.Tensor,  # [B] int64, last committed (bonus) token
    num_nodes: int,  # N, root included
    pair_logprobs: torch.Tensor | None = None,  # [B, D, K, K] float32: parent's rank, then the candidate's
) -> DraftTree:
    """Take the N - 1 most probable prefixes of the drafter's law, below the root.

    Without `pair_logprobs` the law is factorised. With it, `pair_logprobs[b, d, r, c]` is the log-probability of
    candidate c at depth d + 1 after candidate r at depth d, in any order along K, and `topk_logprobs` are not read; at
    depth 1 row 0 is the root's and the others are not read.

    Exact for every K >= 1; with K < N - 1 exact among the prefixes that the K candidates span (Lemma 1: for a
    factorised law K = N - 1 loses nothing). A candidate of log-probability -inf or NaN is never a node; one above 0,
    which a separately rounded log-partition can produce, counts as 0. If fewer prefixes exist, the rest is padding.

    No value goes to the host, so the call can be captured in a CUDA graph after one call outside the
    capture with the same N, D, K and device (which fills a cache of index tables).

    Raises:
        ValueError: a shape, dtype or device is not as annotated, or `num_nodes` is below 1.
    """
    check_builder_inputs(topk_ids, topk_logprobs, root_ids, num_nodes, pair_logprobs)
    _, depth, num_candidates = topk_ids.shape
    plan = tree_plan(num_nodes, depth, num_candidates, pair_logprobs is not None, topk_ids.device)
    law = _Factorised(usable(topk_logprobs), plan) if pair_logprobs is None else _Pairwise(usable(pair_logprobs), plan)
    scores, pairs = _best_pairs_per_depth(law, plan)

    logprobs, slots = _best(scores, min(num_nodes, scores.shape[1]))
    padding = logprobs == -torch.inf
    candidates, depths, parent_slots = _rows_of(plan.pair_table, pairs.gather(1, slots))
    # A slot's place in the final order is its node number.
    node_of_slot = torch.zeros_like(pairs).scatter_(1, slots, plan.slot_numbers[: slots.shape[1]].expand_as(slots))
    parents = node_of_slot.gather(1, parent_slots).masked_fill_(padding, -1)
    token_ids = topk_ids.flatten(1).gather(1, candidates).masked_fill_(padding, 0)
    parents[:, 0] = -1
    token_ids[:, 0] = root_ids
    return _pad(token_ids, parents, depths.masked_fill(padding, 0), logprobs, num_nodes)


class _Factorised:
    """Conditionals `[B, D, K]` that are the same after every parent."""

    def __init__(self, logprobs: torch.Tensor, plan: TreePlan) -> None:
        self._steps = torch.split(logprobs.flatten(1).index_select(1, plan.candidates), list(plan.num_pairs), dim=1)
        self._order = plan.slot_numbers[: plan.num_kept[0]]

    def first(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth 1, where the candidates are the prefixes, already in order: scores and pairs `[B, kept]`."""
        return self._steps[0], self._order.expand(len(self._steps[0]), -1)

    def step(self, d: int, _kept: torch.Tensor, _parents: torch.Tensor) -> torch.Tensor:
        """The conditionals of the pairs of depth d, `[B, pairs]`."""
        return self._steps[d - 1]


class _Pairwise:
    """Conditionals `[B, D, K, K]` after each parent."""

    def __init__(self, logprobs: torch.Tensor, plan: TreePlan) -> None:
        self._logprobs = logprobs.flatten(2)
        self._num_candidates = logprobs.shape[-1]
        # Column of a row's candidates, as the plan lists them: parent by parent, each with all of its K.
        self._columns = plan.candidates % self._num_candidates
        self._num_kept = plan.num_kept[0]

    def first(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth 1, best first: scores and pairs `[B, kept]`."""
        return _best(self._logprobs[:, 0, : self._num_candidates], self._num_kept)

    def step(self, d: int, kept: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """The conditionals of the pairs of depth d, `[B, pairs]`; `kept` are the pairs `[B, kept]` of depth d - 1."""
        ranks = (kept % self._num_candidates).index_select(1, parents)
        return self._logprobs[:, d - 1].gather(1, ranks * self._num_candidates + self._columns[: len(parents)])


def _best_pairs_per_depth(law: _Factorised | _Pairwise, plan: TreePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the root and each depth's best prefixes: scores `[B, slots]` float32, and pair numbers `[B, slots]` int64.

    Within a depth the pairs are listed parent by parent, and of equal scores the first is taken, which makes the tie
    order.
    """
    best, kept = law.first()
    root = plan.slot_numbers[:1].expand(len(best), 1)
    scores, pairs = [best.new_zeros(len(best), 1), best], [root, kept]
    for d, (parents, num_kept) in enumerate(zip(plan.parent_ranks, plan.num_kept[1:], strict=True), start=2):
        extended = scores[-1].index_select(1, parents) + law.step(d, pairs[-1], parents)
        best, kept = _best(extended, num_kept)
        scores.append(best)
        pairs.append(kept)
    return torch.cat(scores, dim=1), torch.cat(pairs, dim=1).add_(plan.first_pair)


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of `scores [B, M]` float32, best first and of equal ones the first; and their columns.

    As one integer, a score's bits and its column have no ties, so a partial selection does what a stable sort does. On
    a CPU that is up to ten times faster for many scores, and slower for few.
    """
    if scores.numel() < MANY_SCORES:
        ordered, columns = torch.sort(scores, dim=1, descending=True, stable=True)
        return ordered[:, :count].contiguous(), columns[:, :count]
    bits = scores.detach().view(torch.int32)
    # Two's complement in the order of the floats: negative ones have their other bits turned around.
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).to(torch.int64)
    last = scores.shape[1] - 1
    columns = torch.topk(keys << 32 | torch.arange(last, -1, -1, device=scores.device), count, dim=1).indices
    return scores.gather(1, columns), columns


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


def usable(logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as both builders read them: NaN as -inf, and nothing above 0.

    Without it a NaN or a value rounded above 0 would put a child before its parent. Zeros have one sign, and so have
    their sums: scores are compared by their bits.
    """
    return torch.nan_to_num(logprobs, nan=-torch.inf, posinf=0.0, neginf=-torch.inf).clamp_(max=0.0).add_(0.0)


def check_builder_inputs(
    topk_ids: torch.Tensor,
    topk_logprobs: torch.Tensor,
    root_ids: torch.Tensor,
    num_nodes: int,
    pair_logprobs: torch.Tensor | None = None,
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
    pairs = () if pair_logprobs is None else (("pair_logprobs", pair_logprobs, torch.float32),)
    if pair_logprobs is not None and pair_logprobs.shape != (*topk_ids.shape, topk_ids.shape[2]):
        raise ValueError(
            f"pair_logprobs must be [B, D, K, K] for topk_ids {tuple(topk_ids.shape)}, got "
            f"{tuple(pair_logprobs.shape)}; score the candidates after each candidate of the depth before"
        )
    for name, tensor, dtype in (
        ("topk_ids", topk_ids, torch.int64),
        ("topk_logprobs", topk_logprobs, torch.float32),
        ("root_ids", root_ids, torch.int64),
        *pairs,
    ):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}; convert it before building the tree")
        if tensor.device != topk_ids.device:
            raise ValueError(f"{name} must be on {topk_ids.device} like topk_ids, got {tensor.device}; move it there")
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1 (the root alone), got {num_nodes}; it is tree budget + 1")
