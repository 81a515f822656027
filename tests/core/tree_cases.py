"""Trees, distributions and references that the tests of the core share. Slow and obvious on purpose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from ddtree_sglang.core import DraftTree, RoundEnds, build_draft_tree, build_draft_tree_heap

FIELDS = ("token_ids", "parents", "depths", "logprobs")

# 0, a tiny step that float32 sums swallow, values whose sums tie, and an impossible candidate.
TIE_PRONE = (0.0, -1e-30, -1e-9, -0.25, -0.5, -0.75, -1.0, -2.0, -50.0, float("-inf"))


@dataclass(frozen=True)
class Candidates:
    """One block of drafted distributions, as the builders take it."""

    ids: torch.Tensor  # [B, D, K] int64
    logprobs: torch.Tensor  # [B, D, K] float32
    root_ids: torch.Tensor  # [B] int64
    pairs: torch.Tensor | None = None  # [B, D, K, K] float32, parent's rank, then the candidate's

    def request(self, b: int) -> Candidates:
        pairs = None if self.pairs is None else self.pairs[b : b + 1]
        return Candidates(self.ids[b : b + 1], self.logprobs[b : b + 1], self.root_ids[b : b + 1], pairs)

    def to(self, device: torch.device) -> Candidates:
        pairs = None if self.pairs is None else self.pairs.to(device)
        return Candidates(self.ids.to(device), self.logprobs.to(device), self.root_ids.to(device), pairs)


def build(candidates: Candidates, num_nodes: int) -> DraftTree:
    tree = build_draft_tree(
        candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes, pair_logprobs=candidates.pairs
    )
    tree.check_invariants()
    return tree


def build_heap(candidates: Candidates, num_nodes: int) -> DraftTree:
    return build_draft_tree_heap(
        candidates.ids, candidates.logprobs, candidates.root_ids, num_nodes, pair_logprobs=candidates.pairs
    )


def top_candidates(full_logprobs: torch.Tensor, num_candidates: int) -> Candidates:
    """The best K of [B, D, V] log-probabilities, ties to the smaller token."""
    ordered, ids = torch.sort(full_logprobs, dim=-1, descending=True, stable=True)
    batch_size = full_logprobs.shape[0]
    return Candidates(
        ids[..., :num_candidates].contiguous(),
        ordered[..., :num_candidates].contiguous(),
        torch.arange(100, 100 + batch_size),
    )


def random_candidates(
    seed: int, batch_size: int, depth: int, vocab: int, num_candidates: int, scale: float = 3.0
) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch_size, depth, vocab, generator=generator) * scale
    return top_candidates(logits.log_softmax(-1), num_candidates)


def pair_candidates(
    seed: int, batch_size: int, depth: int, num_candidates: int, values: Sequence[float] = (), scale: float = 3.0
) -> Candidates:
    """Tokens of each depth differ. Pairs are random conditionals over the K or, if given, drawn from `values`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, depth, num_candidates, num_candidates)
    if values:
        pairs = torch.tensor(values)[torch.randint(0, len(values), shape, generator=generator)]
    else:
        pairs = (torch.randn(shape, generator=generator) * scale).log_softmax(-1)
    unary = random_candidates(seed, batch_size, depth, num_candidates + 3, num_candidates)
    return Candidates(unary.ids, unary.logprobs, unary.root_ids, pairs)


@st.composite
def tie_prone_candidates(draw: st.DrawFn) -> Candidates:
    """Small blocks from a handful of values: equal scores, sums equal to the parent's, -inf, any shape."""
    batch_size, depth, num_candidates = (draw(st.integers(1, top)) for top in (3, 4, 5))
    values = draw(
        st.lists(
            st.sampled_from(TIE_PRONE),
            min_size=batch_size * depth * num_candidates,
            max_size=batch_size * depth * num_candidates,
        )
    )
    logprobs = torch.tensor(values, dtype=torch.float32).view(batch_size, depth, num_candidates)
    return top_candidates(logprobs, num_candidates)


def brute_force_tree(candidates: Candidates, num_nodes: int) -> DraftTree:
    """Every prefix of K ** 1 + ... + K ** D scored and sorted; the first N - 1 with their parents.

    Scores are summed in float32 from the root. The order is the documented one: score descending, then depth,
    then the order of the parent, then candidate rank.
    """
    rows = [_brute_force_row(candidates.request(b), num_nodes) for b in range(len(candidates.root_ids))]
    columns = [torch.tensor([[node[c] for node in row] for row in rows]) for c in range(3)]
    scores = torch.tensor([[node[3] for node in row] for row in rows], dtype=torch.float32)
    return DraftTree(*columns, scores)


def _brute_force_row(candidates: Candidates, num_nodes: int) -> list[tuple[int, int, int, float]]:
    ids = candidates.ids[0]
    depth, num_candidates = ids.shape
    scored: list[tuple[float, int, int, int, tuple[int, ...]]] = []
    order_at_depth: dict[tuple[int, ...], int] = {(): 0}
    scores = torch.zeros(1, dtype=torch.float32)
    for d in range(1, depth + 1):
        # All K ** d prefixes in the order of itertools.product, each its parent's score plus one step.
        scores = (scores.unsqueeze(1) + _conditionals(candidates, d)).flatten()
        level = [
            (-score, d, order_at_depth[ranks[:-1]], ranks[-1], ranks)
            for score, ranks in zip(scores.tolist(), itertools.product(range(num_candidates), repeat=d), strict=True)
            if score > -torch.inf
        ]
        level.sort()
        order_at_depth = {entry[-1]: i for i, entry in enumerate(level)}
        scored += level
    scored.sort(key=lambda entry: entry[:4])
    kept = scored[: num_nodes - 1]
    number = {(): 0} | {entry[-1]: i + 1 for i, entry in enumerate(kept)}
    nodes = [(int(candidates.root_ids[0]), -1, 0, 0.0)]
    for minus_score, d, _, rank, ranks in kept:
        nodes.append((int(ids[d - 1, rank]), number[ranks[:-1]], d, -minus_score))
    return nodes + [(0, -1, 0, -torch.inf)] * (num_nodes - len(nodes))


def _conditionals(candidates: Candidates, d: int) -> torch.Tensor:
    """Of the one request, after each of the K ** (d - 1) prefixes of depth d - 1: `[prefixes, K]`, or `[K]` for all."""
    if candidates.pairs is None:
        return candidates.logprobs[0, d - 1].clamp(max=0)
    rows = candidates.pairs[0, d - 1].clamp(max=0)
    return rows[:1] if d == 1 else rows.repeat(len(rows) ** (d - 2), 1)


def assert_same_tree(actual: DraftTree, expected: DraftTree) -> None:
    for field in FIELDS:
        got, wanted = getattr(actual, field), getattr(expected, field)
        assert got.dtype == wanted.dtype, field
        assert torch.equal(got, wanted), f"{field}:\n{got}\nexpected\n{wanted}"


def prefixes(tree: DraftTree, b: int = 0) -> list[tuple[int, ...]]:
    """The token path of each real node of request b, the root's being empty; in node order."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.num_nodes):
        parent = int(tree.parents[b, node])
        if parent >= 0:
            paths.append((*paths[parent], int(tree.token_ids[b, node])))
    return paths


def make_tree(token_ids: list[int], parents: list[int]) -> DraftTree:
    """One request's tree from its tokens and parents; made-up descending scores."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    real = [node == 0 or parent >= 0 for node, parent in enumerate(parents)]
    scores = [-0.5 * node if real[node] else -torch.inf for node in range(len(parents))]
    return DraftTree(torch.tensor([token_ids]), torch.tensor([parents]), torch.tensor([depths]), torch.tensor([scores]))


def chain_tree(num_nodes: int) -> DraftTree:
    """root -> 1 -> 2 -> ... : what the stock drafter's chain looks like as a tree."""
    return make_tree(list(range(num_nodes)), list(range(-1, num_nodes - 1)))


# The tree that most tests draw on:
#
#   0: 50 (root)
#   |-- 1: 7
#   |   |-- 3: 4
#   |   |   `-- 6: 9
#   |   `-- 4: 7
#   `-- 2: 4
#       `-- 5: 7
#   7: padding, with token 0
#                              0  1  2  3  4  5  6  7
SAMPLE_TREE = make_tree([50, 7, 4, 4, 7, 7, 9, 0], [-1, 0, 0, 1, 1, 2, 3, -1])


def ancestors_of(tree: DraftTree, node: int, b: int = 0) -> set[int]:
    """The node itself and every node above it, by following parents one at a time."""
    seen = {node}
    while (node := int(tree.parents[b, node])) >= 0:
        seen.add(node)
    return seen


def batch_of(*trees: DraftTree) -> DraftTree:
    return DraftTree(*(torch.cat([getattr(tree, field) for tree in trees]) for field in FIELDS))


def random_ends(seed: int, batch_size: int, vocab: int, depth: int, num_nodes: int) -> tuple[RoundEnds, torch.Tensor]:
    """Ends that cut about half of the paths, and prefix lengths that go with them."""
    generator = torch.Generator().manual_seed(seed)
    width = int(torch.randint(0, 4, (), generator=generator))
    prefix_lens = torch.randint(0, 50, (batch_size,), generator=generator)
    end_ids = torch.randint(-1, vocab, (batch_size, width), generator=generator)
    end_ids = torch.where(torch.rand(end_ids.shape, generator=generator) < 0.5, -1, end_ids)
    # Below 1 where overlap scheduling goes on with a request that has ended.
    left = torch.randint(-1, 2 * depth + 2, (batch_size,), generator=generator)
    node_limits = torch.randint(1, 2 * num_nodes + 1, (batch_size,), generator=generator)
    return RoundEnds(end_ids, prefix_lens + left, node_limits), prefix_lens
