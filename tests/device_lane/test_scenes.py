"""Every scene answers as plain decoding does, accepts what core's trees accept, and gives every slot back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.deploy.flag_parsers import sglang_parser
from tests.device_lane.catalogue import SCENES, SLOW_SCENES
from tests.device_lane.launch import split_flags
from tests.device_lane.problems import problems
from tests.device_lane.references import Reference
from tests.device_lane.scenes import Outcome, Scene


@pytest.mark.parametrize("scene", [*SCENES, *SLOW_SCENES], ids=lambda scene: scene.name)
def test_sglang_knows_the_flags_of(scene: Scene) -> None:
    _, flags = split_flags((*scene.flags, *scene.prefill_flags, *scene.decode_flags))
    sglang_parser().parse_args(["--model-path", "x", *flags])


@pytest.mark.parametrize(
    "play",
    [
        *(pytest.param((scene, ""), id=scene.name) for scene in SCENES),
        *(pytest.param((scene, ""), id=scene.name, marks=pytest.mark.slow) for scene in SLOW_SCENES),
    ],
)
def test_scene(
    play: tuple[Scene, str],
    outcomes: Callable[[Scene, str], Outcome],
    references: Callable[[str], Reference],
) -> None:
    scene, mutation = play
    outcome = outcomes(scene, mutation)
    assert problems(scene, outcome, references(scene.pair)) == []
    assert len(outcome.answered) > 0
