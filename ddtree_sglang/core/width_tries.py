"""Which width to try, although another one seems best: one that may be better, as little as is known of it.

How much better it may be follows from how often it was measured. Once or never, a width may be unlike its neighbours,
as behind a cliff; later, only what one more sample would change of what is thought of it counts. What a try loses is
counted in rounds of the best width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddtree_sglang.core.compiled import compiled
from ddtree_sglang.core.cost_model import RoundCosts
from ddtree_sglang.core.cost_row import Array
from ddtree_sglang.core.width_choice import Ints

OPTIMISM = 3.0, 2.5
"""Standard deviations by which a width may be faster than it is thought to be, after no sample and one: a first sample
may hold what is done once, and behind a cliff a width is unlike its neighbours."""
CURIOSITY = 2.0
"""Of a width that has more samples, standard deviations of what one more would change of what is thought of it: if that
cannot make it the best, it need not be tried."""
LEAST_LOSS = 0.05
"""Rounds' time that a try costs at least."""


@dataclass(frozen=True)
class Try:
    """A width that may be the best."""

    place: int  # among those that were asked about
    loss: float  # rounds of the best


def hopeful_tries(
    tokens: Array,  # [W] that a round emits, all requests together
    costs: RoundCosts,
    best: int,  # the place of what seems best
    most_losses: tuple[float, float],
    *,
    only_plain: bool = False,
) -> tuple[Try | None, Try | None]:
    """The most hopeful width of those whose try loses at most so much, for either limit; None if none may be the best.

    `only_plain`: the first width alone is asked about.
    """
    losses = np.empty(len(tokens))
    arrays = tokens, costs.seconds, np.array(costs.samples), costs.doubts
    places = _most_hopeful(*arrays, costs.noise, best, only_plain, *most_losses, losses)
    first, other = (None if place < 0 else Try(place, float(losses[place])) for place in places)
    return first, other


@compiled(
    "UniTuple(int64, 2)(float64[:], float64[:], int64[:], float64[:], float64, int64, boolean, float64, float64, "
    "float64[:])"
)
def _most_hopeful(
    tokens: Array,
    seconds: Array,
    samples: Ints,
    doubts: Array,
    noise: float,
    best: int,
    only_plain: bool,
    first_most: float,
    other_most: float,
    losses: Array,
) -> tuple[int, int]:
    """Places of both limits, -1 for none; fills `losses [W]`."""
    first, other = -1, -1
    highest_first = highest_other = tokens[best] / seconds[best]
    for place in range(len(tokens)):
        doubt = doubts[place]
        if samples[place] < len(OPTIMISM):
            hoped = OPTIMISM[samples[place]] * doubt
        else:
            hoped = CURIOSITY * doubt**2 / np.sqrt(doubt**2 + noise**2)
        # In rounds of the best: what a try takes, if it is dearer than thought, less what its tokens are worth.
        loss = seconds[place] * np.exp(doubt) / seconds[best] - tokens[place] / tokens[best]
        losses[place] = max(loss, LEAST_LOSS)
        if place == best or (only_plain and place > 0):
            continue
        hope = tokens[place] / seconds[place] * np.exp(hoped)
        if losses[place] <= first_most and hope > highest_first:
            first, highest_first = place, hope
        if losses[place] <= other_most and hope > highest_other:
            other, highest_other = place, hope
    return first, other
