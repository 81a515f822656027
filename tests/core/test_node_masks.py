"""The walk of a grammar along a tree, against a fresh grammar that is advanced path by path."""

from __future__ import annotations

import random

import pytest
import torch

from ddtree_sglang.core.node_masks import accept_as_plain, fill_node_masks
from tests.core.grammar_toys import END, VOCABULARY, Countdown, open_rows, packed


def plain_row(left: int, strict: bool, tokens: list[int]) -> torch.Tensor | None:
    """The row of plain decoding after these tokens; None where it would not get there."""
    grammar = Countdown(left, strict)
    for token in tokens:
        if token not in grammar.allowed() or grammar.is_terminated():
            return None
        accept_as_plain(grammar, token)
    return open_rows(1)[0] if grammar.is_terminated() else packed(grammar.allowed())


def random_tree(seed: int, num_nodes: int) -> tuple[list[int], list[int]]:
    """Parents and tokens; some nodes are padding."""
    rng = random.Random(seed)
    parents, tokens = [-1], [rng.randrange(VOCABULARY)]
    for node in range(1, num_nodes):
        padding = node > 0.8 * num_nodes
        parents.append(-1 if padding else rng.randrange(max(0, node - 6), node))
        tokens.append(0 if padding else rng.choice([END, rng.randrange(5), rng.randrange(VOCABULARY)]))
    return parents, tokens


def path_to(node: int, parents: list[int], tokens: list[int]) -> list[int]:
    path = []
    while node > 0:
        path.append(tokens[node])
        node = parents[node]
    return path[::-1]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_each_node_has_the_mask_of_plain_decoding_after_its_path(seed: int, strict: bool) -> None:
    parents, tokens = random_tree(seed, 1 + seed)
    left, first_row = random.Random(seed).randrange(1, 12), 3
    grammar = Countdown(left, strict)
    mask = open_rows(first_row + len(parents) + 2)
    reached = fill_node_masks(grammar, parents, tokens, mask, first_row)
    for node, parent in enumerate(parents):
        is_padding = node > 0 and parent < 0
        row = None if is_padding else plain_row(left, strict, path_to(node, parents, tokens))
        assert reached[node] == (row is not None)
        expected = open_rows(1)[0] if row is None else row
        assert torch.equal(mask[first_row + node], expected), f"node {node}"
    assert (grammar.left, grammar.history, grammar.is_terminated()) == (left, [], False)
    assert bool((mask[:first_row] == -1).all())
    assert bool((mask[first_row + len(parents) :] == -1).all())


def test_a_long_row_of_siblings_and_a_long_path_need_no_deep_stack() -> None:
    num_nodes = 3000
    wide = [-1] + [0] * (num_nodes - 1)
    deep = list(range(-1, num_nodes - 1))
    for parents in (wide, deep):
        mask = open_rows(num_nodes)
        reached = fill_node_masks(Countdown(10 * num_nodes, True), parents, [0] * num_nodes, mask, 0)
        assert all(reached)


def test_a_token_that_the_mask_allows_and_the_grammar_does_not_take_is_not_reached() -> None:
    class Picky(Countdown):
        def accept_token(self, token: int) -> None:
            if token == 1:
                raise ValueError("not this one")
            super().accept_token(token)

    grammar = Picky(9, True)
    mask = open_rows(4)
    assert fill_node_masks(grammar, [-1, 0, 0, 1], [5, 1, 2, 0], mask, 0) == [True, False, True, False]
    assert grammar.left == 9


def test_an_end_token_that_is_ignored_leaves_a_grammar_as_plain_decoding_does() -> None:
    ending, noting = Countdown(0, True), Countdown(0, False)
    accept_as_plain(ending, END)
    accept_as_plain(noting, END)
    # A step of plain decoding that goes on says that the request has not finished, and the second one forgets.
    assert (ending.is_terminated(), noting.is_terminated()) == (True, False)
