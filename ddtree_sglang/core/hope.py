"""How much better a width may be than it is thought to be, compiled: one call for all widths of a round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddtree_sglang.core.compiled import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OPTIMISM = 3.0, 2.5
"""Standard deviations by which a width may be faster than it is thought to be, after no sample and one: a first sample
may hold what is done once, and behind a cliff a width is unlike its neighbours."""
CURIOSITY = 2.0
"""Of a width that has more samples, standard deviations of what one more would change of what is thought of it: if that
cannot make it the best, it need not be tried."""
LEAST_LOSS = 0.05
"""Rounds' time that a try costs at least."""


@compiled("float64[:](float64[:, :], int64[:])")
def doubts_of(covariance: Floats, places: Ints) -> Floats:
    """`[W]`, see `cost_row.CostRow.doubts`."""
    variances = np.empty(len(places))
    for index in range(len(places)):
        place = places[index]
        # Of level and cell together.
        variances[index] = covariance[0, 0] + 2 * covariance[0, place] + covariance[place, place]
    doubts: Floats = np.sqrt(np.maximum(variances - variances.min(), 0.0))
    return doubts


@compiled(
    "UniTuple(Tuple((int64, float64)), 2)(float64[:], float64[:], int64[:], float64[:, :], int64[:], float64, int64, "
    "int64, int64, boolean, float64, float64)"
)
def most_hopeful(
    tokens: Floats,  # [W] or more
    seconds: Floats,  # [W]
    samples: Ints,  # [W]
    covariance: Floats,
    cells: Ints,  # [W] where widths stand in it
    noise: float,
    best: int,
    begin: int,
    end: int,
    only_plain: bool,
    first_most: float,
    other_most: float,
) -> tuple[tuple[int, float], tuple[int, float]]:
    """Place and loss of both limits, of places from `begin` to before `end`; a place of -1 for none."""
    doubts = doubts_of(covariance, cells[begin:end])
    first, first_loss, other, other_loss = -1, 0.0, -1, 0.0
    highest_first = highest_other = tokens[best] / seconds[best]
    for place in range(begin, end):
        doubt = doubts[place - begin]
        if samples[place] < len(OPTIMISM):
            hoped = OPTIMISM[samples[place]] * doubt
        else:
            hoped = CURIOSITY * doubt**2 / np.sqrt(doubt**2 + noise**2)
        # In rounds of the best: what a try takes, if it is dearer than thought, less what its tokens are worth.
        loss = max(seconds[place] * np.exp(doubt) / seconds[best] - tokens[place] / tokens[best], LEAST_LOSS)
        if place == best or (only_plain and place > begin):
            continue
        hope = tokens[place] / seconds[place] * np.exp(hoped)
        if loss <= first_most and hope > highest_first:
            first, first_loss, highest_first = place, loss, hope
        if loss <= other_most and hope > highest_other:
            other, other_loss, highest_other = place, loss, hope
    return (first, first_loss), (other, other_loss)
