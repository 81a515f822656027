"""Scenes of drafters whose heads score pairs of candidates: two waves of three requests, of which one goes on behind
the texts of the other in the prefix cache, so that requests change their places in a batch between rounds.
"""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import SMALLER, three_at_two_budgets, three_go_on
from tests.device_lane.scenes import Scene
from tests.device_lane.waves import by_its_head

BUDGET = 16


def _scene(name: str, backend: str, pair: str, captured: tuple[int, ...] = (4,)) -> Scene:
    return Scene(
        name,
        backend,
        (by_its_head(three_at_two_budgets), by_its_head(three_go_on)),
        pair=pair,
        budget=BUDGET,
        captured=captured,
        at_once=3,
        clear_at=(BUDGET + 1, SMALLER + 1),
        moves=True,
    )


LATTICE = _scene("lilicorr", "triton", "lilicorr")
MARKOV = _scene("markov-anchor", "flashinfer", "markov_anchor")
GATED_MARKOV = _scene("gated-markov", "fa3", "gated_markov")
# As DFlash2's drafters are published.
CONVOLUTIONS = _scene("selector-convolutions", "triton", "selector_convolutions")
# Its head reads the target's embeddings, of which each rank has a part.
LATTICE_ON_TWO_RANKS = replace(
    LATTICE,
    name="lilicorr-two-ranks",
    backend="fa3",
    # A larger vocabulary is guessed less often, so that few requests of six tokens hang on all that the head reads.
    waves=(by_its_head(three_at_two_budgets), three_go_on),
    pair="wide_lilicorr",
    flags=("--tp-size", "2"),
)
HEADS = (LATTICE, MARKOV, GATED_MARKOV, CONVOLUTIONS)
