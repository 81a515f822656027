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


def _tree(name: str, backend: str) -> Scene:
    """The larger tree of a pair of the list, with graphs."""
    has_states = "full_attention_interval" in PAIRS[name].target
    return Scene(
        name,
        backend,
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


def scenes_of(name: str) -> tuple[Scene, ...]:
    """Of a pair of the list; graphs are captured for the larger tree alone."""
    tree = _tree(name, BACKENDS[PAIRS[name].family])
    others = (
        replace(tree, budget=SMALLER, captured=()),
        replace(tree, algorithm="DFLASH", budget=None, captured=(), moves=False),
    )
    return tuple(replace(scene, name=f"{name}{end}") for scene, end in zip((tree, *others), ENDS, strict=True))


PUBLISHED = tuple(scene for name in PAIRS if name not in SERVED for scene in scenes_of(name))


def _on(name: str, backend: str) -> Scene:
    """The larger tree on another backend than the family's own above."""
    return replace(_tree(name, backend), name=f"{name}-{backend}")


ON_OTHER_BACKENDS = tuple(
    _on(name, backend)
    for name, backends in (
        ("Kimi-K2.5", ("fa3",)),
        ("Qwen3-Coder-30B-A3B", ("triton", "flashinfer")),
        ("Qwen3-Coder-Next", ("flashinfer",)),
    )
    for backend in backends
)
# Beside gated delta nets, Triton's attention has its interpreter take a minute or more.
SLOW_ON_OTHER_BACKENDS = tuple(_on(name, "triton") for name in ("Qwen3.5-35B-A3B", "Qwen3-Coder-Next"))
