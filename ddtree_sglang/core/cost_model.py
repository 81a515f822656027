"""What a round costs: seconds by requests, nodes per request and context, learned from rounds that were served.

Nothing is assumed of the curve: it need be neither convex nor smooth, because captured widths, vector lengths and
cache sizes make cliffs. Each cell (requests, nodes, context to a factor of two) has a time of its own: the median of
its first samples, which then follows the newest ones slowly. A cell without samples is estimated from those that have
some: each knows by what factor it differs from a plain first guess, and near ones count more.

Machines have moods: a neighbour or a clock makes all rounds slower for a while. So a common factor follows the newest
samples fast, and cells hold times without it. What is compared is then always of the same mood. A single sample,
however absurd, moves both by a few per cent, and one that no clock can give (not finite, not above 0) is dropped.

All of it is the host's arithmetic, and no device is asked for anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FIRST_SAMPLES = 5
"""A cell's samples of which the median is its time."""
KNOWN = 3
"""Samples from which a cell is not explored any more."""
MOOD_PACE, CELL_PACE = 0.2, 0.04
"""How fast the mood and a cell follow: their logarithms go this share of the way to the newest sample."""
LARGEST_STEP = math.log(1.5)
"""A sample counts as at most this far from its estimate, in logarithms."""
REGUESS = 64
"""Samples of known cells after which the others are guessed anew."""
NEARNESS = (1.0, 1.0, 1.5)
"""Where a known cell's word about an unknown one counts e^-0.5: powers of 2 of requests, nodes and context between."""
OWN_WEIGHT, GUESS_WEIGHT = 4.0, 0.05
"""What a cell's own samples count against its neighbours' word, and the first guess beside all of them."""

Cell: TypeAlias = tuple[int, int, int]
"""Requests, nodes of each (1: plain decoding, nothing is drafted), and `context_class` of the mean prefix."""

Array: TypeAlias = npt.NDArray[np.float64]


def context_class(mean_prefix: float) -> int:
    """Contexts to a factor of two; up to 256 tokens all are alike."""
    return max(0, round(math.log2(max(mean_prefix, 1.0) / 256)))


def first_guess(batch_size: int, num_nodes: int, context: int) -> float:
    """In forwards of one node of one request: what holds roughly everywhere, and scales away.

    A draft costs a quarter of a forward, a row 2 % of it, and context adds to each request's share.
    """
    return 1.0 + (0.25 if num_nodes > 1 else 0.0) + batch_size * (0.02 * num_nodes + 0.01 * 2.0**context)


@dataclass
class CellTime:
    """What is known of a cell; logarithms of seconds, without the mood."""

    first: list[float]  # samples, FIRST_SAMPLES of them at most
    now: float

    def observe(self, value: float) -> None:
        """One more sample."""
        if len(self.first) < FIRST_SAMPLES:
            self.first.append(value)
            self.now = median(self.first)
        else:
            self.now += CELL_PACE * _clipped(value - self.now)


@dataclass
class CostModel:
    """Seconds of a round; see the module."""

    cells: dict[Cell, CellTime] = field(default_factory=dict)
    mood: float = 0.0  # logarithm of the factor that all times have now
    _table: tuple[Array, Array] | None = field(default=None, repr=False)
    _guessed: dict[Cell, float] = field(default_factory=dict, repr=False)  # of the cells that are hardly known
    _observed: int = 0

    def seconds(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> Array:
        """`[W]` seconds of a round of `batch_size` requests, by the nodes that it verifies of each.

        `mean_prefix` is the mean committed length of the requests. Before the first sample the unit is arbitrary;
        ratios are the first guess's.
        """
        context, factor = context_class(mean_prefix), math.exp(self.mood)
        return np.array([factor * self._estimate((batch_size, width, context)) for width in widths])

    def num_samples(self, batch_size: int, mean_prefix: float, num_nodes: int) -> int:
        """How often this very cell was measured; counted up to FIRST_SAMPLES."""
        cell = self.cells.get((batch_size, num_nodes, context_class(mean_prefix)))
        return 0 if cell is None else len(cell.first)

    def observe(self, batch_size: int, mean_prefix: float, num_nodes: int, seconds: float) -> None:
        """A round of `num_nodes` a request took `seconds`, from its beginning to the next one's."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        cell = batch_size, num_nodes, context_class(mean_prefix)
        value = math.log(seconds) - self.mood
        if (known := self.cells.get(cell)) is None:
            self.cells[cell] = CellTime([value], value)
        else:
            # A cell that is hardly known tells of itself, not of the mood.
            if len(known.first) >= KNOWN:
                self.mood += MOOD_PACE * _clipped(value - known.now)
            known.observe(math.log(seconds) - self.mood)
        self._observed += 1
        if known is None or len(known.first) < KNOWN or self._observed % REGUESS == 0:
            self._table = None
            self._guessed.clear()

    def _estimate(self, cell: Cell) -> float:
        """Without the mood: the first guess times a mean factor, in logarithms, of what cells are off it."""
        if (own := self.cells.get(cell)) is not None and len(own.first) >= KNOWN:
            return math.exp(own.now)
        if (guessed := self._guessed.get(cell)) is None:
            guessed = self._guessed[cell] = self._guess(cell)
        return guessed

    def _guess(self, cell: Cell) -> float:
        guess = first_guess(*cell)
        if not self.cells:
            return guess
        if self._table is None:
            offs = [time.now - math.log(first_guess(*known)) for known, time in self.cells.items()]
            self._table = np.array([_place(known) for known in self.cells]), np.array(offs)
        places, offs_of = self._table
        distance = (places - _place(cell)) / NEARNESS
        weights = np.exp(-0.5 * (distance**2).sum(1))
        weights[(distance == 0).all(1)] = OWN_WEIGHT
        # Far cells still tell what a forward takes here, so their mean is what near ones are weighed against.
        mean = (weights @ offs_of + GUESS_WEIGHT * offs_of.mean()) / (weights.sum() + GUESS_WEIGHT)
        return float(guess * math.exp(mean))

    def to_json(self) -> list[list[Any]]:
        """`[requests, nodes, context, seconds]` of each cell, the seconds being those of now."""
        return [[*cell, float(f"{math.exp(time.now + self.mood):.6g}")] for cell, time in sorted(self.cells.items())]

    @classmethod
    def from_json(cls, rows: Any) -> CostModel:
        """What `to_json` gave; each cell begins with one sample, which the first ones served outvote.

        Raises:
            ValueError: it is something else.
        """
        model = cls()
        if not isinstance(rows, list):
            raise ValueError(f"a cost table must be a list of [requests, nodes, context, seconds], got {rows!r:.80}")
        for row in rows:
            if not (isinstance(row, list) and len(row) == 4 and all(type(one) in (int, float) for one in row)):
                raise ValueError(f"a row of a cost table must be [requests, nodes, context, seconds], got {row!r:.80}")
            *cell, seconds = row
            if not (all(type(one) is int for one in cell) and cell[0] > 0 and cell[1] > 0 and cell[2] >= 0):
                raise ValueError(f"requests and nodes must be at least 1 and context at least 0, got {row!r:.80}")
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"seconds must be a number above 0, got {row!r:.80}")
            value = math.log(seconds)
            model.cells[cell[0], cell[1], cell[2]] = CellTime([value], value)
        return model


def _clipped(step: float) -> float:
    return max(-LARGEST_STEP, min(LARGEST_STEP, step))


def _place(cell: Cell) -> Array:
    """Where distances are measured: powers of two."""
    return np.array([math.log2(cell[0]), math.log2(cell[1]), float(cell[2])])
