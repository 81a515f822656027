"""What is refused is refused for a cause: with the refusal taken away, the scene that it refuses goes wrong.

`wrong` must be found among the scene's problems: tokens that are not plain decoding's, or what the server ends or waits
for. A scene that passes without its refusal shows that the refusal is not needed, and fails here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.device_lane.lifted import LIFTED
from tests.device_lane.lifted_catalogue import NEEDED
from tests.device_lane.mutations import MUTATIONS
from tests.device_lane.needed import TOKENS, Needed
from tests.device_lane.problems import problems
from tests.device_lane.references import Reference
from tests.device_lane.scenes import Outcome, Scene


def rows(lift: bool) -> list[object]:
    """The table as parameters: the scene with the refusal taken away, or as it is."""
    return [
        pytest.param(
            (needed.scene, needed.lifted) if lift else (needed.refused, ""),
            needed,
            id=needed.scene.name,
            marks=[pytest.mark.slow] if needed.slow else [],
        )
        for needed in NEEDED
    ]


@pytest.mark.parametrize(("play", "needed"), rows(lift=False))
def test_scene_is_refused(play: tuple[Scene, str], needed: Needed, outcomes: Callable[[Scene, str], Outcome]) -> None:
    outcome = outcomes(*play)
    assert outcome.failure is not None
    assert needed.refusal in outcome.failure + outcome.log


@pytest.mark.parametrize(("play", "needed"), rows(lift=True))
def test_scene_goes_wrong_without_the_refusal(
    play: tuple[Scene, str],
    needed: Needed,
    outcomes: Callable[[Scene, str], Outcome],
    references: Callable[[str], Reference],
) -> None:
    scene, lifted = play
    outcome = outcomes(scene, lifted)
    found = problems(scene, outcome, references(scene.pair))
    # What a server dies of is not always the last error of its log.
    said = [*found, outcome.log] if outcome.failure else found
    assert re.search(needed.wrong, "\n".join(said)), found
    if needed.wrong == TOKENS:
        assert outcome.failure is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "play", [pytest.param((one.control, one.lifted), id=one.control.name) for one in NEEDED if one.right]
)
def test_the_same_server_is_right_without_trees(
    play: tuple[Scene, str], outcomes: Callable[[Scene, str], Outcome], references: Callable[[str], Reference]
) -> None:
    scene, _ = play
    outcome = outcomes(*play)
    assert problems(scene, outcome, references(scene.pair)) == []
    assert len(outcome.answered) > 0


def test_every_refusal_that_is_taken_away_has_a_scene() -> None:
    assert {needed.lifted for needed in NEEDED} == set(LIFTED)
    assert not set(LIFTED) & set(MUTATIONS)
