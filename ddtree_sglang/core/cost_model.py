"""What a round costs: seconds by requests, nodes per request and context, learned from rounds that were served.

Nothing is assumed of the curve: it need be neither convex nor smooth, because captured widths, vector lengths and
cache sizes make cliffs. Rounds of one number of requests and one context (requests beyond 8 to a factor of 1.4,
contexts to a factor of two) are a row of the table, with a cell for each number of nodes.

Each row learns by a filter of its own (`core.cost_row`). A value that no clock can give is dropped.

All of it is the host's arithmetic, and no device is asked for anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ddtree_sglang.core.cost_row import FAR, NEAR_LEVEL, SETTLED, SMOOTH, UNKNOWN_LEVEL, Array, CostRow, Places

Cell: TypeAlias = tuple[int, int, int]
"""`batch_class` of the requests, nodes of each (1: nothing is drafted), and `context_class` of the mean prefix."""

NEAR_ROW = 0.1
"""Like SMOOTH, of a row with its nearest row one step away."""
NOISE, LEAST_NOISE, MOST_NOISE = 0.05, 0.02, 0.3
"""Standard deviation of a sample: at first, and its limits."""
NOISE_PACE = 0.05
"""How fast it follows."""
FILED_NOISE, KNOWN_NOISE = 0.1, 1e-4
"""Standard deviation of a sample that was read from a file, and of one that is certain."""
NEARNESS = (1.0, 1.5)
"""Where a row's word about a new one counts e^-0.5: powers of 2 of requests, and of context between."""
GUESS_WEIGHT = 0.05
"""What the mean of all rows counts beside near ones."""

MOOD, MOOD_SECONDS = 0.2, 5.0
"""By how much the machine's mood differs after a while, as a standard deviation, and how long that is."""

COLUMNS = ("requests", "nodes", "context", "seconds")
"""Of a table."""
LARGEST = 100_000, 100_000, 20
"""Of a table's cells: more than any server has, and small enough for every product."""
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e4
"""Of a table's times."""


def context_class(mean_prefix: float) -> int:
    """Contexts to a factor of two; up to 256 tokens all are alike."""
    return max(0, round(math.log2(max(mean_prefix, 1.0) / 256)))


def batch_class(batch_size: int) -> int:
    """Up to 8 requests each number is its own class, beyond it one stands for those within a factor of 1.25 of it.

    No class holds both 8 and more: a server looks for n-grams of up to 8 requests, which takes time.
    """
    return batch_size if batch_size <= 8 else round(2 ** (max(7, round(2 * math.log2(batch_size))) / 2))


def row_of(batch_size: int, mean_prefix: float) -> tuple[int, int]:
    """Classes of requests and of context: the row of the table that their rounds belong to."""
    return batch_class(batch_size), context_class(mean_prefix)


def first_guess(batch_size: int, num_nodes: int, context: int) -> float:
    """In forwards of one node of one request: what holds roughly everywhere, and scales away.

    A draft costs a quarter of a forward, a row 2 % of it, and context adds to each request's share.
    """
    return 1.0 + (0.25 if num_nodes > 1 else 0.0) + batch_size * (0.02 * num_nodes + 0.01 * 2.0**context)


@lru_cache(maxsize=256)
def _first_guesses(batch_size: int, widths: tuple[int, ...], context: int) -> Array:
    """`[W]`, of rounds that are asked about again and again; not to be written."""
    guesses = np.array([first_guess(batch_size, width, context) for width in widths])
    guesses.setflags(write=False)
    return guesses


@dataclass(slots=True)
class RoundCosts:
    """Of rounds of some requests, by the nodes of each: W widths."""

    key: tuple[int, int]  # `row_of` these rounds
    seconds: Array  # [W] as they are thought to be now
    samples: list[int]  # [W] how often each was measured by this server
    noise: float  # standard deviation of a sample's logarithm
    row: CostRow
    places: Places  # [W] in the row's state; all is as it was when they were asked for, until a round is observed

    @property
    def doubts(self) -> Array:
        """`[W]` standard deviations of the logarithms of the seconds, beyond that of the width that is known best."""
        return self.row.doubts(self.places)


@dataclass
class CostModel:
    """Seconds of a round; see the module."""

    rows: dict[tuple[int, int], CostRow] = field(default_factory=dict)  # by classes of requests and context
    variance: float = NOISE**2  # of a sample
    num_rounds: int = 0

    def of_rounds(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> RoundCosts:
        """What a round of `batch_size` requests costs, by the nodes that it verifies of each.

        `mean_prefix` is the mean committed length of the requests. Before the first sample the unit is arbitrary;
        ratios are the first guess's.
        """
        key = row_of(batch_size, mean_prefix)
        row = self._row(key, widths)
        places = row.places(widths)
        seconds = row.seconds(places, _first_guesses(batch_size, tuple(widths), key[1]))
        return RoundCosts(key, seconds, row.samples_of(widths), self.noise, row, places)

    def seconds(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> Array:
        """`[W]` seconds of a round; arguments are those of `of_rounds`."""
        return self.of_rounds(batch_size, mean_prefix, widths).seconds

    @property
    def is_empty(self) -> bool:
        """No round was measured, so seconds are no seconds."""
        return not any(row.is_known for row in self.rows.values())

    def observe(self, batch_size: int, mean_prefix: float, num_nodes: int, seconds: float) -> bool:
        """A round of `num_nodes` a request took `seconds`, from its beginning to the next one's.

        Returns whether that is far from what was expected, so that another sample would tell something.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            return False
        key = row_of(batch_size, mean_prefix)
        row = self._row(key, (num_nodes,))
        place = row.place(num_nodes)
        self.num_rounds += 1
        value = math.log(seconds / first_guess(batch_size, num_nodes, key[1]))
        was_known = row.samples[place - 1] > 1
        off = row.observe(place, value, self.noise, self.num_rounds)
        if row.is_refuted:
            self._forget_file()
        elif was_known:
            shown = self.variance * min(off, FAR) ** 2
            self.variance += NOISE_PACE * (shown - self.variance)
            self.variance = min(max(self.variance, LEAST_NOISE**2), MOST_NOISE**2)
        return off > FAR

    def rest(self, seconds: float) -> None:
        """No round was measured for so long: the next ones may find the machine in another mood."""
        variance = MOOD**2 * (1 - math.exp(-2 * max(seconds, 0.0) / MOOD_SECONDS))
        for row in self.rows.values():
            row.rest(variance, MOOD**2)

    @property
    def noise(self) -> float:
        """Standard deviation of a sample."""
        return math.sqrt(self.variance)

    def _forget_file(self) -> None:
        """Rows that a file told of begin anew."""
        self.rows = {key: row for key, row in self.rows.items() if not row.filed}

    def _row(self, key: tuple[int, int], widths: Sequence[int]) -> CostRow:
        if (row := self.rows.get(key)) is None:
            row = self.rows[key] = self._new_row(key, widths)
        return row

    def _new_row(self, key: tuple[int, int], widths: Sequence[int]) -> CostRow:
        """Thought to be off the first guess as the rows are that were measured, near ones above all."""
        known = {other: row for other, row in self.rows.items() if row.is_known}
        if not known:
            return CostRow(widths, np.zeros(len(widths)), (0.0, UNKNOWN_LEVEL), SMOOTH)
        distances = np.array([_distance(key, other) for other in known])
        weights = np.exp(-0.5 * distances**2) + GUESS_WEIGHT / len(known)
        weights /= weights.sum()
        cells = np.stack([row.cells(row.places(widths)) for row in known.values()])
        levels = np.array([row.state[0] for row in known.values()])
        smooth = min(SMOOTH, NEAR_ROW * float(distances.min()))
        row = CostRow(widths, weights @ cells, (float(weights @ levels), NEAR_LEVEL), smooth)
        row.seen_at = self.num_rounds
        return row

    @property
    def cells(self) -> dict[Cell, float]:
        """Those that were measured, and their seconds when their row was served last.

        One sample alone is none: it may hold what is done once.
        """
        held = {}
        for (size, context), row in sorted(self.rows.items()):
            offs = row.offs(row.places(row.widths))
            for width, samples, off in sorted(zip(row.widths, row.samples, offs.tolist(), strict=True)):
                if samples > 1 or width in row.filed:
                    guess = first_guess(size, width, context)
                    held[size, width, context] = guess * math.exp(min(max(off, -50.0), 50.0))
        return held

    def to_json(self) -> list[list[Any]]:
        """`[requests, nodes, context, seconds]` of each cell that was measured."""
        return [
            [*cell, float(f"{min(max(seconds, LEAST_SECONDS), MOST_SECONDS):.6g}")]
            for cell, seconds in self.cells.items()
        ]

    @classmethod
    def from_json(cls, rows: Any) -> CostModel:
        """What `to_json` gave; each cell begins with one sample, which the first ones served outvote.

        Raises:
            ValueError: it is something else.
        """
        return cls()._told(read_cells(rows), FILED_NOISE)

    @classmethod
    def of_cells(cls, cells: Mapping[Cell, float]) -> CostModel:
        """One that knows these seconds, as if each cell had been measured often."""
        model = cls()._told(cells, KNOWN_NOISE)
        for row in model.rows.values():
            row.filed.clear()
            row.samples = [SETTLED] * len(row.widths)
        return model

    def _told(self, cells: Mapping[Cell, float], noise: float) -> CostModel:
        by_row: dict[tuple[int, int], dict[int, float]] = {}
        for (size, width, context), seconds in cells.items():
            off = math.log(seconds / first_guess(size, width, context))
            by_row.setdefault((batch_class(size), context), {})[width] = off
        for key, offs in by_row.items():
            level = float(np.mean(list(offs.values())))
            row = self.rows[key] = CostRow(list(offs), np.zeros(len(offs)), (level, UNKNOWN_LEVEL), SMOOTH)
            row.tell(list(offs.values()), noise)
        return self


def read_cells(rows: Any) -> dict[Cell, float]:
    """Seconds by cell of a table as `CostModel.to_json` writes it.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(rows, list):
        raise ValueError(f"a cost table must be a list of [requests, nodes, context, seconds], got {rows!r:.80}")
    return {(size, width, context): seconds for size, width, context, seconds in map(_checked, rows)}


def _checked(row: Any) -> tuple[int, int, int, float]:
    """A row of a table.

    Raises:
        ValueError: it is none.
    """
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
    return cell[0], cell[1], cell[2], float(seconds)


def _distance(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Between rows, in units of NEARNESS."""
    return math.hypot((math.log2(first[0]) - math.log2(second[0])) / NEARNESS[0], (first[1] - second[1]) / NEARNESS[1])
