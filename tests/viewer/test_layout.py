"""Rows, depths and the writing of tokens."""

from __future__ import annotations

import random

import pytest

from ddtree_sglang.viewer.layout import children_of, node_depths, node_rows, plain_line, running, visible
from tests.viewer.cases import PARENTS


def test_first_child_continues_its_parents_row_and_the_others_follow_below() -> None:
    parents = PARENTS[:-1]
    assert node_depths(parents) == [0, 1, 2, 1, 2, 3]
    assert children_of(parents) == [[1, 3], [2, 4], [5], [], [], []]
    assert node_rows(parents) == [0, 0, 0, 2, 1, 0]
    assert (node_rows([-1]), node_rows([]), node_depths([])) == ([0], [], [])


def test_no_two_nodes_are_drawn_in_one_place_and_no_row_is_empty() -> None:
    draw = random.Random(7)
    for _ in range(300):
        parents = [-1, *(draw.randrange(node) for node in range(1, draw.randrange(2, 60)))]
        rows, depths = node_rows(parents), node_depths(parents)
        assert len(set(zip(rows, depths, strict=True))) == len(parents)
        leaves = [node for node, below in enumerate(children_of(parents)) if not below]
        assert sorted(rows[leaf] for leaf in leaves) == list(range(len(leaves))), "a row for each leaf"
        firsts = [below[0] for below in children_of(parents) if below]
        assert all(rows[child] == rows[parents[child]] for child in firsts)


def test_chain_of_the_largest_tree_is_drawn() -> None:
    assert node_rows([-1, *range(255)]) == [0] * 256


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("", "∅"),
        (" a b", "·a·b"),
        ("\n\t", "⏎⇥"),
        ("é漢🙂", "é漢🙂"),
        ("\x1b[31m", "\\u{1b}[31m"),
        ("\u202eabc", "\\u{202e}abc"),
        ("\u2028", "\\u{2028}"),
        ("\ud800", "\\u{d800}"),
        ("</script>", "</script>"),
    ],
)
def test_token_is_written_so_that_it_is_seen_and_acts_on_no_terminal(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_text_keeps_its_spaces_and_nothing_that_moves_a_cursor() -> None:
    assert running("if x:\n  y\x07") == "if x:⏎  y\\u{7}"
    assert plain_line("a b\nc\x1b") == "a b\\u{a}c\\u{1b}"
