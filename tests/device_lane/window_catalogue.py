"""Scenes of targets with sliding windows on FA3 in pages of several tokens: each node has a row of single slots there.

gpt-oss has sinks as well, and a pool of its windows' own, whose slots are others; Mellum has no sinks.
"""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    chunked,
    fill_the_pool,
    past_the_window,
    prefix_hit,
    three_at_two_budgets,
    three_go_on,
)
from tests.device_lane.published_catalogue import BUDGET, SMALLER
from tests.device_lane.scenes import Scene, pool_of
from tests.device_lane.state_catalogue import CHUNKS, LOAD_FLAGS
from tests.device_lane.waves import changing_widths, seeded, staggered

_PAGES = ("--page-size", "4", *CHUNKS)

WINDOWS_FA3_PAGES = Scene(
    "windows-fa3-pages",
    "fa3",
    (past_the_window, prefix_hit),
    pair="gpt_oss",
    budget=7,
    flags=_PAGES,
    captured=(4,),
    at_once=3,
    moves=True,
)
# Slots of the two pools are the same ones until some that a window has passed are given out again.
WINDOWS_FA3_PAGES_RETRACTION = replace(
    WINDOWS_FA3_PAGES,
    name="windows-fa3-pages-retraction",
    waves=(fill_the_pool,),
    flags=(*pool_of(132), *_PAGES[:2]),
    must_log=("Retract requests",),
)
WINDOWS_FA3_PAGES_OTHERS = (
    # A page is longer than the window.
    replace(
        WINDOWS_FA3_PAGES,
        name="windows-fa3-pages-eager",
        flags=("--page-size", "16", "--chunked-prefill-size", "16"),
        captured=(),
    ),
    replace(
        WINDOWS_FA3_PAGES,
        name="windows-fa3-pages-16",
        waves=(three_at_two_budgets, three_go_on, staggered, chunked),
        budget=BUDGET,
        clear_at=(BUDGET + 1, SMALLER + 1),
        captured=(1, 2, 4),
    ),
    WINDOWS_FA3_PAGES_RETRACTION,
    replace(WINDOWS_FA3_PAGES, name="windows-fa3-pages-mellum", pair="mellum"),
    replace(
        WINDOWS_FA3_PAGES,
        name="windows-fa3-pages-one-pool",
        pair="mellum",
        flags=(*_PAGES, "--disable-hybrid-swa-memory"),
    ),
    replace(
        WINDOWS_FA3_PAGES,
        name="windows-fa3-pages-widths",
        waves=(changing_widths,),
        pair="mellum",
        budget=4,
        flags=(*_PAGES, *LOAD_FLAGS),
        captured=(1, 2),
        at_once=0,
        moves=False,
    ),
    replace(
        WINDOWS_FA3_PAGES,
        name="windows-fa3-pages-deterministic",
        waves=(past_the_window, prefix_hit, seeded),
        flags=(*_PAGES, "--enable-deterministic-inference"),
    ),
)
