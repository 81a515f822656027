"""Scenes of drafters whose heads score pairs of candidates: two waves of three requests, of which one goes on behind
the texts of the other in the prefix cache, so that requests change their places in a batch between rounds.
"""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    SMALLER,
    finishes,
    resumes_at_its_end,
    three_at_two_budgets,
    three_go_on,
)
from tests.device_lane.references import Asked
from tests.device_lane.scenes import Chooser, Scene, Sent, Wave
from tests.device_lane.state_catalogue import STATES_POOL
from tests.device_lane.waves import by_its_head

BUDGET = 16


def one_to_the_last_depth(chooser: Chooser) -> list[Sent]:
    """One of whose rounds some accept a whole path: a token of every depth that the drafter proposes."""

    def deep(asked: Asked) -> Asked | None:
        longest = max(one.commit_len for one in chooser.rounds(asked))
        return asked if longest == chooser.reference.pair.max_path_len else None

    return [Sent(chooser.find(5, 9, deep))]


def _scene(name: str, backend: str, pair: str, *more: Wave) -> Scene:
    return Scene(
        name,
        backend,
        (by_its_head(three_at_two_budgets), by_its_head(three_go_on), *more),
        pair=pair,
        budget=BUDGET,
        captured=(4,),
        at_once=3,
        clear_at=(BUDGET + 1, SMALLER + 1),
        moves=True,
    )


LATTICE = _scene("lilicorr", "triton", "lilicorr")
MARKOV = _scene("markov-anchor", "flashinfer", "markov_anchor", one_to_the_last_depth)
GATED_MARKOV = _scene("gated-markov", "fa3", "gated_markov", one_to_the_last_depth)
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
# LFM2's own, on such a target. SGLang keeps no states of it at fixed lengths.
MARKOV_LFM2 = replace(
    GATED_MARKOV,
    name="short-convolution-markov",
    waves=(by_its_head(three_at_two_budgets), finishes, resumes_at_its_end, one_to_the_last_depth),
    pair="short_convolution_markov",
    flags=STATES_POOL,
)
HEADS = (LATTICE, MARKOV, GATED_MARKOV, CONVOLUTIONS)
