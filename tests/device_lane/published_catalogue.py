"""Scenes of the published pairs that the CPU platform does not serve, three of each: two trees, and SGLang's chain.

All three of a pair are asked the same: three requests at once, then three of which some go on behind the first ones'
texts in the prefix cache. Rounds of three requests at eight and at seventeen nodes are seen in the lane's report.
"""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    three_at_two_budgets,
    three_go_on,
    three_past_a_tracked_length,
    three_resume,
)
from tests.device_lane.scenes import Scene
from tests.device_lane.state_catalogue import TRACKED
from tests.support.published import BACKENDS, ENDS, PAIRS, SERVED

BUDGET, SMALLER = 16, 7


def scenes_of(name: str) -> tuple[Scene, ...]:
    """Of a pair of the list; graphs are captured for the larger tree alone."""
    pair = PAIRS[name]
    has_states = "full_attention_interval" in pair.target
    tree = Scene(
        name,
        BACKENDS[pair.family],
        (three_past_a_tracked_length, three_resume) if has_states else (three_at_two_budgets, three_go_on),
        pair=name,
        budget=BUDGET,
        flags=TRACKED if has_states else (),
        captured=(4,),
        at_once=3,
        asked_as=name,
        clear_at=(BUDGET + 1, SMALLER + 1),
        moves=True,
    )
    others = (
        replace(tree, budget=SMALLER, captured=()),
        replace(tree, algorithm="DFLASH", budget=None, captured=(), moves=False),
    )
    return tuple(replace(scene, name=f"{name}{end}") for scene, end in zip((tree, *others), ENDS, strict=True))


PUBLISHED = tuple(scene for name in PAIRS if name not in SERVED for scene in scenes_of(name))
