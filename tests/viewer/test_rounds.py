"""A line of a trace as values: what it says, what it lacks, what is not taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ddtree_sglang.viewer.rounds import Measured, NotARound, Round, parse_round
from tests.viewer.cases import PARENTS, PROBS, SAMPLE, a_round


def parsed(**changed: Any) -> Round:
    return parse_round(json.dumps(a_round(**changed)))


def test_round_has_its_tree_without_padding_and_its_path() -> None:
    found = parsed(batch_size=2)
    part = found.parts[1]
    assert (part.request_id, part.prefix_len, part.commit_len) == ("request-1", 10, 3)
    assert part.token_ids == (100, 101, 102, 103, 104, 105)
    assert list(part.parents) == PARENTS[:-1]
    assert (part.path, part.emitted_ids) == ((0, 1, 4), (101, 104, 9))
    assert (found.tokens, found.stages_ms, found.total_ms) == (6, {"draft": 4.0, "verify": 6.0}, 10.0)


def test_expected_tokens_are_the_sum_of_the_path_probabilities() -> None:
    assert parsed(batch_size=2).expected_tokens == pytest.approx(2 * sum(PROBS))


def test_nodes_beyond_a_requests_own_budget_are_not_expected() -> None:
    part = parsed(node_limits=[3]).parts[0]
    assert (part.walkable, len(part.parents)) == (3, 6)
    assert part.expected_tokens == pytest.approx(1.0 + 0.6 + 0.5)


def test_what_the_policy_tells_of_its_choice_is_kept() -> None:
    found = parsed(batch_size=2, decision="tree of 7", expected_tokens=[2.25, 1.75], expected_ms=9.5)
    assert (found.decision, found.expected_ms, found.expected_tokens) == ("tree of 7", 9.5, 4.0)
    assert "expected" not in found.stages_ms, "what was expected is no stage"
    of_batch = parsed(batch_size=2, expected_tokens=3.0)
    assert of_batch.expected_tokens == 3.0
    assert of_batch.parts[0].expected_tokens == pytest.approx(sum(PROBS)), "of one request its tree tells"
    unknown = parsed(expected_tokens=0.0, expected_ms=0.0)
    assert (unknown.expected_ms, unknown.expected_tokens) == (None, pytest.approx(sum(PROBS)))


def test_what_a_round_before_took_is_kept() -> None:
    found = parsed(measured={"rounds_ago": 2, "ms": 11.5, "expected_ms": 10.0}).measured
    assert found == Measured(rounds_ago=2, ms=11.5, expected_ms=10.0)
    unknown = parsed(measured={"rounds_ago": 1, "ms": 11.5, "expected_ms": 0.0}).measured
    assert unknown == Measured(rounds_ago=1, ms=11.5, expected_ms=None)
    assert parsed().measured is None
    with pytest.raises(NotARound, match="a damaged round"):
        parsed(measured={"ms": 11.5})


def test_every_line_of_the_sample_is_a_round_and_paths_follow_parents() -> None:
    rounds = [parse_round(line) for line in SAMPLE.read_bytes().splitlines()]
    assert {found.batch_size for found in rounds} == {1, 2, 3}
    assert {found.num_nodes for found in rounds} == {1, 17}
    parts = [part for found in rounds for part in found.parts]
    assert {part.node_limit for part in parts} == {1, 4, 17}
    for part in parts:
        assert [part.parents[node] for node in part.path] == [-1, *part.path[:-1]]
        assert part.commit_len == len(part.path) == len(part.emitted_ids)
        assert [part.token_ids[node] for node in part.path[1:]] == list(part.emitted_ids[:-1])
        assert max(part.path) < part.walkable


@pytest.mark.parametrize("name", sorted(set(a_round()) - {"batch_size", "total_ms"}))
def test_line_of_an_older_build_without_a_field_is_a_round(name: str) -> None:
    found = parsed(**{name: None})
    assert len(found.parts) == 1
    assert found.total_ms == 10.0


def test_line_with_nothing_but_times_is_a_round_without_a_tree() -> None:
    found = parse_round('{"batch_size": 2, "total_ms": 5}')
    assert [(part.request_id, part.parents, part.expected_tokens) for part in found.parts] == [
        ("request 0", (), None),
        ("request 1", (), None),
    ]
    assert (found.tokens, found.expected_tokens, found.num_nodes) == (None, None, None)


@pytest.mark.parametrize("text", ["", "{", '{"batch_size": 1, "total', "\x00\x01", "[" * 100_000, "1" * 5000])
def test_what_is_no_json_is_no_round(text: str) -> None:
    with pytest.raises(NotARound, match="no JSON"):
        parse_round(text)


def test_damaged_batch_size_asks_for_no_memory() -> None:
    with pytest.raises(NotARound, match="damaged"):
        parse_round('{"batch_size": 100000000000, "total_ms": 1}')


@pytest.mark.parametrize("text", ["null", "3", "[]", "{}", '{"level": "info", "message": "ready"}', '{"total_ms": 3}'])
def test_foreign_json_is_no_round(text: str) -> None:
    with pytest.raises(NotARound, match="no round of a trace"):
        parse_round(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": "two"},
        {"batch_size": -1},
        {"batch_size": True},
        {"batch_size": 10**400},
        {"total_ms": float("nan")},
        {"total_ms": float("inf")},
        {"draft_ms": "long"},
        {"draft_ms": -1.0},
        {"total_ms": 1e300},
        {"path_probs": [[1.0, 1.5, 0, 0, 0, 0, 0]]},
        {"path_probs": [[1.0, -0.5, 0, 0, 0, 0, 0]]},
        {"token_ids": [[2**60] * 7]},
        {"request_ids": []},
        {"request_ids": 7},
        {"commit_lens": [3, 3]},
        {"commit_lens": [-1]},
        {"token_ids": [[1, 2]]},
        {"token_ids": [["a"] * 7]},
        {"parents": [[-1, 0, 1, 0, 1, 5, -1]]},
        {"parents": [[-1, 9, 1, 0, 1, 2, -1]]},
        {"path_probs": [[None] * 7]},
        {"accept_index": [[0, 1, 6]]},
        {"accept_index": [[0, "x"]]},
        {"expected_tokens": [1.0, 2.0, 3.0], "batch_size": 1, "node_limits": "x"},
    ],
)
def test_damaged_round_is_none(changed: dict[str, Any]) -> None:
    # A batch size may not fit the lists beside it, either.
    line = {**a_round(), **changed}
    with pytest.raises(NotARound, match="damaged"):
        parse_round(json.dumps(line))
