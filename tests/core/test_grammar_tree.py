"""The best tree under a grammar, against every prefix that the grammar allows."""

from __future__ import annotations

import math
import random

import pytest
import torch

from ddtree_sglang.core import build_draft_tree
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.grammar_tree import Drafted, GrammarTree, allowed_first, build_grammar_tree
from ddtree_sglang.core.node_masks import accept_as_plain, fill_node_masks
from tests.core.grammar_toys import END, Countdown, open_rows
from tests.core.tree_cases import pair_candidates


def draft(seed: int, depth: int, num_candidates: int, num_scored: int = 0) -> list[Drafted]:
    """Candidates of `depth` positions, mostly small tokens, END among them; pairs of the first `num_scored`."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(depth):
        ids = torch.randperm(8, generator=generator)[: num_candidates - 1]
        ids = torch.cat([ids, torch.tensor([END])])
        logprobs = (2 * torch.randn(len(ids), generator=generator)).log_softmax(0).sort(descending=True).values
        pairs = (2 * torch.randn(num_scored, num_scored, generator=generator)).log_softmax(1) if num_scored else None
        if pairs is not None:
            pairs += logprobs[:num_scored].logsumexp(0)
        made.append(Drafted.of(ids, logprobs, pairs))
    return made


def law_after(path: tuple[int, ...], drafted: list[Drafted]) -> list[float]:
    """Log-probabilities of the candidates behind a path: of pairs where both are scored, else the position's."""
    at = drafted[len(path)]
    law = at.logprobs.tolist()
    if at.pairs is not None:
        parent = drafted[len(path) - 1].ids.tolist().index(path[-1]) if path else 0
        if parent < len(at.pairs):
            law[: len(at.pairs)] = at.pairs[parent].tolist()
    return law


def every_prefix(left: int, strict: bool, drafted: list[Drafted]) -> list[tuple[float, tuple[int, ...]]]:
    """All prefixes that plain decoding could emit, with their log-probabilities renormalised, best first."""
    found: list[tuple[float, tuple[int, ...]]] = []
    pending = [(0.0, ())]
    while pending:
        score, path = pending.pop()
        grammar = Countdown(left, strict)
        for token in path:
            accept_as_plain(grammar, token)
        if len(path) == len(drafted) or grammar.is_terminated():
            continue
        ids, logprobs = drafted[len(path)].ids.tolist(), law_after(path, drafted)
        kept = [(token, logprob) for token, logprob in zip(ids, logprobs, strict=True) if token in grammar.allowed()]
        mass = sum(math.exp(logprob) for _, logprob in kept)
        children = [(score + logprob - math.log(mass), (*path, token)) for token, logprob in kept]
        found += children
        pending += children  # type: ignore[arg-type]
    # A forced token's path is as probable as its parent's, and comes after it.
    return sorted(found, key=lambda one: (-round(one[0], 6), len(one[1])))


def paths_of(tree: GrammarTree) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


@pytest.mark.parametrize("num_scored", [0, 3, 5])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_the_tree_holds_the_most_probable_prefixes_that_the_grammar_allows(
    seed: int, strict: bool, num_scored: int
) -> None:
    rng = random.Random(seed)
    left, num_nodes = rng.randrange(9), rng.randrange(1, 14)
    drafted = draft(seed, rng.randrange(1, 5), 5, num_scored)
    grammar, mask = Countdown(left, strict), open_rows(num_nodes + 3)
    tree = build_grammar_tree(grammar, drafted, num_nodes, mask, 2)
    expected = every_prefix(left, strict, drafted)[: num_nodes - 1]
    assert sorted(paths_of(tree)[1:]) == sorted(path for _, path in expected)
    assert tree.logprobs[1:] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert tree.logprobs == sorted(tree.logprobs, reverse=True)
    assert tree.depths == [len(path) for path in paths_of(tree)]
    assert (grammar.left, grammar.history, grammar.is_terminated()) == (left, [], False)
    again = open_rows(num_nodes + 3)
    assert all(fill_node_masks(Countdown(left, strict), tree.parents, tree.token_ids, again, 2))
    assert torch.equal(mask, again)


def test_a_forced_token_costs_its_path_nothing() -> None:
    """The drafter gives the only allowed token a thousandth; under the grammar it is certain."""
    ids = torch.tensor([5, 0])
    certain = Drafted.of(ids, torch.tensor([0.999, 0.001]).log())
    tree = build_grammar_tree(Countdown(1, True), [certain], 3, open_rows(3), 0)
    assert tree.token_ids == [0, 0]
    assert tree.logprobs == [0.0, 0.0]


def test_what_cannot_be_drafted_leaves_the_root() -> None:
    impossible = Drafted.of(torch.tensor([0]), torch.tensor([-torch.inf]))
    assert build_grammar_tree(Countdown(3, True), [impossible], 4, open_rows(4), 0).parents == [-1]
    assert build_grammar_tree(Countdown(3, True), [], 4, open_rows(4), 0).parents == [-1]


def test_first_tokens_that_a_grammar_forbids_leave_a_law_of_pairs_too() -> None:
    """No order along K has to be kept there, so the candidates stay where they are."""
    candidates = pair_candidates(2, 2, 3, 4)
    kept = candidates.ids[:, 0, 2:]
    mask = (1 << kept).sum(1, keepdim=True).int()  # of a vocabulary of fewer than 32
    pruned = allowed_first(DraftCandidates(candidates.ids, candidates.logprobs, candidates.pairs), mask)
    tree = build_draft_tree(pruned.topk_ids, pruned.topk_logprobs, candidates.root_ids, 43, pruned.pair_logprobs)
    tree.check_invariants()
    for b in range(2):
        first = tree.token_ids[b][tree.depths[b] == 1].tolist()
        assert sorted(first) == sorted(kept[b].tolist())
    assert pruned.pair_logprobs is not None
    assert candidates.pairs is not None
    assert torch.equal(pruned.pair_logprobs[:, 1:], candidates.pairs[:, 1:])
