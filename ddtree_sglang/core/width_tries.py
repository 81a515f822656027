"""Which width to try, although another one seems best: one that may be better, as little as is known of it.

How much better it may be follows from how often it was measured. Once or never, a width may be unlike its neighbours,
as behind a cliff; later, only what one more sample would change of what is thought of it counts. What a try loses is
counted in rounds of the best width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddtree_sglang.core import hope
from ddtree_sglang.core.cost_model import RoundCosts
from ddtree_sglang.core.cost_row import Array


class Try(NamedTuple):
    """A width that may be the best."""

    place: int
    loss: float  # rounds of the best


def hopeful_tries(
    tokens: Array,  # [W] that a round emits, all requests together
    costs: RoundCosts,
    best: int,  # the place of what seems best
    most_losses: tuple[float, float],
    *,
    first: int = 0,
    last: int | None = None,
    only_plain: bool = False,
) -> tuple[Try | None, Try | None]:
    """The most hopeful width of those whose try loses at most so much, for either limit; None if none may be the best.

    Args:
        first, last: widths from this place on, and from that one on no more, are asked about; all of the costs' own.
        only_plain: the first width alone is asked about.
    """
    found = hope.most_hopeful(
        *(tokens, costs.seconds, np.array(costs.samples), costs.row.covariance, costs.places, costs.noise),
        *(best, first, len(costs.places) if last is None else last, only_plain, *most_losses),
    )
    (place, loss), (other, other_loss) = found
    return None if place < 0 else Try(place, loss), None if other < 0 else Try(other, other_loss)
