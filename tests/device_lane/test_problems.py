"""What the lane's report tells of rounds is asked of every scene of trees: how many nodes they verified."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.device_lane.problems import _of_mixing, problems
from tests.device_lane.published_catalogue import scenes_of
from tests.device_lane.scenes import Outcome, Scene

LARGE, SMALL, CHAIN = scenes_of("gpt-oss-20b")
REFERENCE: Any = SimpleNamespace(of_server=lambda _flags: None)


def found(scene: Scene, *rounds: tuple[int, int | None]) -> list[str]:
    """Of rounds by requests and nodes, where nothing was answered."""
    lines = tuple({"batch_size": size, "nodes": nodes} for size, nodes in rounds)
    return problems(replace(scene, moves=False), Outcome((), 0, "", None, lines), REFERENCE)


@pytest.mark.parametrize(("scene", "nodes"), [(LARGE, 17), (SMALL, 8), (CHAIN, None)])
def test_rounds_of_the_scenes_nodes_are_as_they_should_be(scene: Scene, nodes: int | None) -> None:
    assert found(scene, (3, nodes), (1, nodes)) == []


def test_rounds_of_other_nodes_are_noticed() -> None:
    assert found(SMALL, (3, 17)) == ["rounds verified [17] nodes a request, expected 8"]
    assert found(LARGE, (3, 17), (2, 8)) == ["rounds verified [8, 17] nodes a request, expected 17"]


def test_a_scene_of_three_at_once_needs_such_a_round() -> None:
    assert found(LARGE, (2, 17)) == ["no round had more than 2 requests, expected 3"]


def test_a_scene_whose_accepted_nodes_stay_where_they_are_shows_no_tree() -> None:
    outcome = Outcome((), 0, "", None, ({"batch_size": 3, "nodes": 17},))
    assert problems(LARGE, outcome, REFERENCE) == [
        "no accepted node had to move, so that a chain would have passed as well"
    ]


def test_where_chunks_are_mixed_some_answer_has_other_rounds_than_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    by_itself = [SimpleNamespace(commit_len=2), SimpleNamespace(commit_len=1)]
    chooser = SimpleNamespace(rounds=lambda _asked: by_itself)
    monkeypatch.setattr("tests.device_lane.problems.Chooser", lambda *_: chooser)
    scene = replace(SMALL, flags=(*SMALL.flags, "--enable-mixed-chunk"))

    def mixing(*histograms: list[int], check: str = "steps", of: Scene = scene) -> list[str]:
        answered: Any = tuple(
            SimpleNamespace(
                sent=SimpleNamespace(check=check, asked=None),
                answer={"meta_info": {"spec_correct_drafts_histogram": one}},
            )
            for one in histograms
        )
        return _of_mixing(of, Outcome(answered, 0, "", None, ()), REFERENCE)

    assert mixing([1, 1], [1, 1]) != []
    assert mixing([1, 1], [2]) == []
    assert mixing([1, 1], check="tokens") == [], "nothing is said of its rounds"
    assert mixing([1, 1], of=SMALL) == []
