"""What is read of a trace, and what a walk through a recorded tree is, by hand."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.simulator.predictions import Scene
from ddtree_sglang.simulator.recording import RecordingError, load_answers
from tests.simulator.cases import Linear, answer
from tests.viewer.cases import SAMPLE, a_round, write


@pytest.mark.parametrize(
    ("walk", "path", "chain"),
    [("spine", (0, 1, 2, 5), (3, True)), ("sibling", (0, 1, 4), (1, False)), ("other", (0, 3, 6), (0, False))],
)
def test_the_text_decides_the_walk_of_each_smaller_tree(walk: str, path: tuple[int, ...], chain: Any) -> None:
    tree = answer([walk, "none", "none", "none"]).trees[10]
    assert tree.path == path
    assert tree.spine == (0, 1, 2, 5)
    assert tree.depths == (0, 1, 2, 1, 2, 3, 2)
    for num_nodes in range(1, 8):
        assert tree.accepted(num_nodes) == tuple(node for node in path if node < num_nodes)
    assert tree.accepted_of_chain(8) == chain, "of a block of 8 the spine was recorded for four nodes"


def test_a_chain_that_was_recorded_whole_ends_where_its_block_does() -> None:
    tree = answer(["spine", "none", "none", "none"]).trees[10]
    assert tree.accepted_of_chain(4) == (3, False)
    assert tree.accepted_of_chain(3) == (2, False)


def test_a_trace_of_one_token_a_round_has_a_tree_at_each_position(tmp_path: Path) -> None:
    """A request of the root alone commits a token a round; its text says what its trees would have brought."""
    tokens, lines = [100, 101, 104, 9, 7], []
    for place, (root, following) in enumerate(pairwise(tokens)):
        own = {"token_ids": [[root, 101, 102, 103, 104, 105, 0]], "node_limits": [1]}
        own |= {"accept_index": [[0, -1]], "emitted_ids": [[following]], "commit_lens": [1]}
        lines.append(a_round(place, prefix_lens=[20 + place], **own))
    (one,) = load_answers(write(tmp_path / "trace.jsonl", lines))
    assert (one.start, one.end, sorted(one.trees)) == (20, 24, [20, 21, 22, 23])
    # 101 is node 1 and 104 its child 4; then 9 is nowhere.
    assert one.trees[20].path == (0, 1, 4)
    assert one.trees[21].path == (0,)
    assert one.tree_at(22) == (one.trees[22], False)
    assert one.widest == 7, "one node of each is padding, for its candidates gave no more"


def test_the_narrowest_round_is_as_wide_as_trees_can_be_replayed(tmp_path: Path) -> None:
    """In a trace of several widths a wider tree could not be told from one whose candidates gave no more."""
    narrow = {"num_nodes": 3, "token_ids": [[9, 11, 12]], "parents": [[-1, 0, 0]], "path_probs": [[1.0, 0.6, 0.2]]}
    lines = [a_round(0), a_round(1, **narrow, accept_index=[[0, -1]], emitted_ids=[[9]], commit_lens=[1])]
    (one,) = load_answers(write(tmp_path / "trace.jsonl", lines))
    assert {at: len(tree.parents) for at, tree in one.trees.items()} == {10: 6, 13: 3}
    assert one.widest == 3
    costs = Linear()
    assert Scene([one], costs, 3, (2,), 2).predict([1])
    with pytest.raises(
        ValueError, match="wider than the 3 nodes of the narrowest round that drafted, got a budget of 3"
    ):
        Scene([one], costs, 3, (3,), 2)


def test_positions_without_a_tree_have_the_one_before() -> None:
    one = answer(["spine", "none", "sibling", "none", "none"], trees=lambda position: position % 2 == 0)
    assert one.tree_at(11) == (one.trees[10], True)
    assert one.tree_at(12) == (one.trees[12], False)
    assert answer(["none"] * 4, trees=lambda position: position == 12).tree_at(10)[1]


def test_a_servers_trace_is_replayed_as_it_was_and_so_is_a_compressed_one(tmp_path: Path) -> None:
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(SAMPLE.read_bytes()))
    answers = load_answers(SAMPLE)
    assert load_answers(packed) == answers
    recorded = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    paths = {
        (name, prefix): tuple(node for node in path if node >= 0)
        for line in recorded
        for name, prefix, path, limit in zip(
            *(line[key] for key in ("request_ids", "prefix_lens", "accept_index", "node_limits")), strict=True
        )
        if limit == line["num_nodes"]
    }
    compared = [
        (tree.path[: len(paths[one.name, at])], paths[one.name, at])
        for one in answers
        for at, tree in one.trees.items()
        if (one.name, at) in paths and at + len(paths[one.name, at]) <= one.end
    ]
    assert len(compared) > 30
    assert all(replayed == walked for replayed, walked in compared), "the text leads where the server walked"


@pytest.mark.parametrize("lines", [[], ["nothing\n"], [a_round(0, token_ids=None)]])
def test_a_trace_without_trees_is_refused(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(RecordingError, match="must hold drafted trees"):
        load_answers(write(tmp_path / "trace.jsonl", lines))
    with pytest.raises(RecordingError, match="must be a readable trace"):
        load_answers(tmp_path / "none")
    (tmp_path / "bad.gz").write_text("no gzip")
    with pytest.raises(RecordingError, match="must be a readable trace"):
        load_answers(tmp_path / "bad.gz")
