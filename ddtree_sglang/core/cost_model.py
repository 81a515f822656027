"""What a round costs: seconds by requests, nodes per request and context, learned from rounds that were served.

Nothing is assumed of the curve: it need be neither convex nor smooth, because captured widths, vector lengths and
cache sizes make cliffs. Each cell (requests, nodes, context to a factor of two; requests beyond 8 to a factor of 1.4)
is off a first guess by a factor of its own: the median of its first samples, which then follows the newest ones slowly.
The first of all often holds what is done once, so of two the smaller counts. A cell without samples is estimated from
those that have some, of which near ones count more.

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
"""`batch_class` of the requests, nodes of each (1: nothing is drafted), and `context_class` of the mean prefix."""

LARGEST = 100_000, 100_000, 20
"""Of a table's cells: more than any server has, and small enough for every product."""
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e4
"""Of a table's times."""

Array: TypeAlias = npt.NDArray[np.float64]


def context_class(mean_prefix: float) -> int:
    """Contexts to a factor of two; up to 256 tokens all are alike."""
    return max(0, round(math.log2(max(mean_prefix, 1.0) / 256)))


def batch_class(batch_size: int) -> int:
    """Up to 8 requests each number is its own class, beyond it one stands for those within a factor of 1.2 of it."""
    return batch_size if batch_size <= 8 else round(2 ** (round(2 * math.log2(batch_size)) / 2))


def first_guess(batch_size: int, num_nodes: int, context: int) -> float:
    """In forwards of one node of one request: what holds roughly everywhere, and scales away.

    A draft costs a quarter of a forward, a row 2 % of it, and context adds to each request's share.
    """
    return 1.0 + (0.25 if num_nodes > 1 else 0.0) + batch_size * (0.02 * num_nodes + 0.01 * 2.0**context)


@dataclass
class CellTime:
    """By what a cell is off the first guess; logarithms, without the mood."""

    first: list[float]  # samples, FIRST_SAMPLES of them at most
    now: float

    def observe(self, value: float) -> None:
        """One more sample."""
        if len(self.first) < FIRST_SAMPLES:
            self.first.append(value)
            self.now = min(self.first) if len(self.first) < KNOWN else median(self.first)
        else:
            self.now += CELL_PACE * _clipped(value - self.now)


@dataclass
class CostModel:
    """Seconds of a round; see the module."""

    cells: dict[Cell, CellTime] = field(default_factory=dict)
    mood: float = 0.0  # logarithm of the factor that all times have now
    _places: Array | None = field(default=None, repr=False)  # [cells, 3], made anew when there is another cell
    _guessed: dict[Cell, float] = field(default_factory=dict, repr=False)  # of the cells that are hardly known
    _observed: int = 0

    def seconds(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> Array:
        """`[W]` seconds of a round of `batch_size` requests, by the nodes that it verifies of each.

        `mean_prefix` is the mean committed length of the requests. Before the first sample the unit is arbitrary;
        ratios are the first guess's.
        """
        size, context = batch_class(batch_size), context_class(mean_prefix)
        cells = [(size, width, context) for width in widths]
        self._guess([cell for cell in cells if not self._is_known(cell) and cell not in self._guessed])
        offs = [self.cells[cell].now if self._is_known(cell) else self._guessed[cell] for cell in cells]
        guesses = [first_guess(batch_size, width, context) for width in widths]
        seconds: Array = np.array(guesses) * np.exp(np.array(offs) + self.mood)
        return seconds

    def num_samples(self, batch_size: int, mean_prefix: float, num_nodes: int) -> int:
        """How often this very cell was measured; counted up to FIRST_SAMPLES."""
        cell = self.cells.get((batch_class(batch_size), num_nodes, context_class(mean_prefix)))
        return 0 if cell is None else len(cell.first)

    def observe(self, batch_size: int, mean_prefix: float, num_nodes: int, seconds: float) -> None:
        """A round of `num_nodes` a request took `seconds`, from its beginning to the next one's."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        context = context_class(mean_prefix)
        cell = batch_class(batch_size), num_nodes, context
        off = math.log(seconds / first_guess(batch_size, num_nodes, context))
        known = self.cells.get(cell)
        if known is None:
            self.cells[cell] = CellTime([off - self.mood], off - self.mood)
            self._places = None
        else:
            # A cell that is hardly known tells of itself, not of the mood.
            if len(known.first) >= KNOWN:
                self.mood += MOOD_PACE * _clipped(off - self.mood - known.now)
            known.observe(off - self.mood)
        self._observed += 1
        if known is None or len(known.first) <= KNOWN or self._observed % REGUESS == 0:
            self._guessed.clear()

    def _is_known(self, cell: Cell) -> bool:
        own = self.cells.get(cell)
        return own is not None and len(own.first) >= KNOWN

    def _guess(self, cells: Sequence[Cell]) -> None:
        """What these are off the first guess: a weighted mean of what is known, of the cell's own samples above all."""
        if not cells:
            return
        if not self.cells:
            self._guessed.update(dict.fromkeys(cells, 0.0))
            return
        if self._places is None:
            self._places = np.array([_place(known) for known in self.cells])
        offs = np.array([time.now for time in self.cells.values()])
        distance = (self._places[None] - np.array([_place(cell) for cell in cells])[:, None]) / NEARNESS
        weights = np.exp(-0.5 * (distance**2).sum(2))
        weights[(distance == 0).all(2)] = OWN_WEIGHT
        # Far cells still tell what a forward takes here, so their mean is what near ones are weighed against.
        means = (weights @ offs + GUESS_WEIGHT * offs.mean()) / (weights.sum(1) + GUESS_WEIGHT)
        self._guessed.update(zip(cells, means.tolist(), strict=True))

    def to_json(self) -> list[list[Any]]:
        """`[requests, nodes, context, seconds]` of each cell, the seconds being those of now."""
        rows: list[list[Any]] = []
        for cell, time in sorted(self.cells.items()):
            seconds = first_guess(*cell) * math.exp(min(max(time.now + self.mood, -50.0), 50.0))
            rows.append([*cell, float(f"{min(max(seconds, LEAST_SECONDS), MOST_SECONDS):.6g}")])
        return rows

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
            least = zip((1, 1, 0), cell, LARGEST, strict=True)
            if not all(type(one) is int and low <= one <= high for low, one, high in least):
                raise ValueError(
                    f"requests, nodes and context must be whole numbers from 1, 1, 0 to {LARGEST}, got {row!r:.80}"
                )
            if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
                raise ValueError(f"seconds must be from {LEAST_SECONDS} to {MOST_SECONDS}, got {row!r:.80}")
            off = math.log(seconds / first_guess(*cell))
            model.cells[batch_class(cell[0]), cell[1], cell[2]] = CellTime([off], off)
        return model


def _clipped(step: float) -> float:
    return max(-LARGEST_STEP, min(LARGEST_STEP, step))


def _place(cell: Cell) -> tuple[float, float, float]:
    """Where distances are measured: powers of two."""
    return math.log2(cell[0]), math.log2(cell[1]), float(cell[2])
