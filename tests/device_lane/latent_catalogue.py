"""Scenes of targets with latent attention on FA3 in pages of several tokens, whose nodes are read by single slots."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    chunked,
    fill_the_pool,
    prefix_hit,
    three_at_two_budgets,
    three_go_on,
)
from tests.device_lane.published_catalogue import BUDGET, SMALLER
from tests.device_lane.scenes import Scene, pool_of
from tests.device_lane.state_catalogue import CHUNKS, DELTA_ATTENTION, TRACKED
from tests.device_lane.waves import few, staggered

_PAGES = ("--page-size", "4")

LATENT_FA3_PAGES = Scene(
    "latent-fa3-pages",
    "fa3",
    (few, prefix_hit),
    pair="deepseek",
    budget=7,
    flags=_PAGES,
    captured=(4,),
    at_once=3,
    moves=True,
)
LATENT_FA3_PAGES_OTHERS = (
    replace(
        LATENT_FA3_PAGES,
        name="latent-fa3-pages-eager",
        flags=("--page-size", "16", "--chunked-prefill-size", "16"),
        captured=(),
    ),
    replace(
        LATENT_FA3_PAGES,
        name="latent-fa3-pages-16",
        waves=(three_at_two_budgets, three_go_on, staggered, chunked),
        budget=BUDGET,
        flags=(*_PAGES, *CHUNKS),
        clear_at=(BUDGET + 1, SMALLER + 1),
        captured=(1, 2, 4),
    ),
    replace(
        LATENT_FA3_PAGES,
        name="latent-fa3-pages-retraction",
        waves=(fill_the_pool,),
        flags=(*pool_of(88), *_PAGES),
        must_log=("Retract requests",),
    ),
    replace(LATENT_FA3_PAGES, name="latent-fa3-pages-kimi", pair="Kimi-K2.5"),
    # Beside layers with states, which the prefix cache keeps and resumes.
    replace(DELTA_ATTENTION, name="latent-fa3-pages-states", flags=(*TRACKED, *_PAGES)),
)
