"""What a round costs: seconds by requests, nodes per request and context, learned from rounds that were served.

Nothing is assumed of the curve: it need be neither convex nor smooth, because captured widths, vector lengths and
cache sizes make cliffs. Rounds of one number of requests and one context (requests beyond 8 to a factor of 1.4,
contexts to a factor of two) are a row of the table, with a cell for each number of nodes.

Within a row logarithms are estimated by a Kalman filter. Its state is a level, which all cells share and which drifts
fast, because machines have moods: a neighbour or a clock makes all rounds slower for a while; and what each cell is off
a first guess, which hardly changes. Before it is measured, a cell is thought to be off as its neighbours are
(a Gaussian process over the logarithm of the nodes), and a little on its own. So two cells are compared by samples that
lie near in time, one that was measured once is believed a little, and how much the comparison is to be believed is
known (`doubts`).

A cell's first sample counts little, because it may hold what is done once. One that is far from what was expected is
hardly believed: it may be the clock's fault, a mood, or a change of the cell, and widens what is thought of all three,
so that the next ones decide. How far is far follows from how far samples usually are. A value that no clock can give is
dropped.

All of it is the host's arithmetic, and no device is asked for anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Cell: TypeAlias = tuple[int, int, int]
"""`batch_class` of the requests, nodes of each (1: nothing is drafted), and `context_class` of the mean prefix."""

SMOOTH, OWN = 0.3, 0.08
"""Standard deviation of what a cell is off the first guess: with its neighbours, and alone."""
REACH = 1.0
"""Powers of two of nodes within which cells are neighbours."""
NEAR_ROW = 0.1
"""Like SMOOTH, of a row with its nearest row one step away."""
UNKNOWN_LEVEL, NEAR_LEVEL = 30.0, 1.0
"""Standard deviation of a level before a row's first sample: of the first row, and of one that has others beside it."""
LEVEL_DRIFT, CELL_DRIFT = 0.01, 0.002
"""What a level and a cell change in a round, as standard deviations."""
NOISE, LEAST_NOISE, MOST_NOISE = 0.05, 0.02, 0.3
"""Standard deviation of a sample: at first, and its limits."""
NOISE_PACE = 0.05
"""How fast it follows."""
FIRST_NOISE = 0.5
"""Standard deviation of a cell's first sample, in which products of new shapes may be compiled."""
FAR = 3.0
"""Standard deviations from which a sample is hardly believed."""
OF_NOISE, OF_CELL = 2.5, 0.15
"""What a far sample says of the clock and of its cell, beside what it says of the machine's mood."""
LARGEST_STEP = math.log(3.0)
"""A sample counts as at most so far off, in logarithms."""
FILED_NOISE, KNOWN_NOISE = 0.1, 1e-4
"""Standard deviation of a sample that was read from a file, and of one that is certain."""
REFUTED = math.log(2.0)
"""A cell that changes by more, beside others, shows that a file is of something else."""
SETTLED = 8
"""Samples of a cell after which it is its own, whatever a file said."""
NEARNESS = (1.0, 1.5)
"""Where a row's word about a new one counts e^-0.5: powers of 2 of requests, and of context between."""
GUESS_WEIGHT = 0.05
"""What the mean of all rows counts beside near ones."""

LARGEST = 100_000, 100_000, 20
"""Of a table's cells: more than any server has, and small enough for every product."""
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e4
"""Of a table's times."""


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


def _kernel(first: Array, second: Array) -> Array:
    """`[W, V]`: by how much cells of these nodes are off alike, as a share of SMOOTH squared."""
    return np.exp(-0.5 * ((np.log2(first)[:, None] - np.log2(second)) / REACH) ** 2)  # type: ignore[no-any-return]


class CostRow:
    """Cells of one number of requests and one context: logarithms of seconds over the first guess."""

    def __init__(self, widths: Sequence[int], means: Array, level: tuple[float, float], smooth: float) -> None:
        """`means [W]`: what cells are thought to be off, beside the level, a mean and its standard deviation.

        `smooth` is the standard deviation of what neighbours share.
        """
        self.widths = list(widths)
        self.smooth = smooth
        self.prior = self._prior_covariance(np.array(widths, dtype=np.float64))
        # The level first, then the cells.
        self.state = np.concatenate([[level[0]], means])
        self.covariance = np.zeros((len(widths) + 1,) * 2)
        self.covariance[0, 0] = level[1] ** 2
        self.covariance[1:, 1:] = self.prior
        self.means = means
        self.samples = [0] * len(widths)
        self.filed: set[int] = set()  # nodes of cells that were read from a file
        self.seen_at = 0
        self._strikes: dict[int, float] = {}  # by nodes: sign of a filed cell's last far sample
        self._is_calm = False  # since the last of those, another sample was as expected
        self.is_refuted = False  # a sample says that what a file said of these cells is wrong

    @property
    def num_samples(self) -> int:
        """Rounds that were served, of all its cells."""
        return sum(self.samples)

    @property
    def is_known(self) -> bool:
        """Some cell was measured, now or by the server that wrote a file."""
        return bool(self.filed or self.num_samples)

    def _prior_covariance(self, widths: Array) -> Array:
        covariance: Array = self.smooth**2 * _kernel(widths, widths) + OWN**2 * np.eye(len(widths))
        return covariance

    def places(self, widths: Sequence[int]) -> list[int]:
        """Where cells stand in the state; those that are new join with what their neighbours say."""
        for width in widths:
            if width not in self.widths:
                self._join(width)
        return [1 + self.widths.index(width) for width in widths]

    def _join(self, width: int) -> None:
        known = np.array(self.widths, dtype=np.float64)
        shared = self.smooth**2 * _kernel(known, np.array([width], dtype=np.float64))[:, 0]
        weights = np.linalg.solve(self.prior, shared)
        mean = float(np.interp(math.log2(width), np.log2(np.sort(known)), self.means[np.argsort(known)]))
        cross = self.covariance[:, 1:] @ weights
        own = self.smooth**2 + OWN**2 - shared @ weights + weights @ self.covariance[1:, 1:] @ weights
        value = mean + weights @ (self.state[1:] - self.means)
        self.covariance = np.block([[self.covariance, cross[:, None]], [cross[None], np.array([[own]])]])
        self.state, self.means = np.append(self.state, value), np.append(self.means, mean)
        self.widths.append(width)
        self.samples.append(0)
        self.prior = self._prior_covariance(np.array(self.widths, dtype=np.float64))

    def follow(self, rounds: int) -> None:
        """So many rounds of any row have passed."""
        passed, self.seen_at = rounds - self.seen_at, rounds
        most = np.full(len(self.state), self.smooth**2 + OWN**2)
        drift = np.full(len(self.state), CELL_DRIFT**2)
        most[0], drift[0] = NEAR_LEVEL**2, LEVEL_DRIFT**2
        diagonal = np.einsum("ii->i", self.covariance)
        diagonal += np.clip(most - diagonal, 0.0, passed * drift)

    def observe(self, place: int, value: float, noise: float) -> float:
        """One sample of the cell at `place`; how far it is off, in standard deviations."""
        self.samples[place - 1] += 1
        if self.samples[place - 1] == 1:
            noise = FIRST_NOISE
        off = float(value - self.state[0] - self.state[place])
        deviation = math.sqrt(float(self._variances([place])[0]) + noise**2)
        is_far = abs(off) > FAR * deviation
        self._count_strikes(place, off, is_far=is_far)
        step = max(-LARGEST_STEP, min(LARGEST_STEP, off)) if is_far else off
        if is_far:
            # The clock, the machine's mood or, less probably, the cell: what comes next will tell.
            self.covariance[0, 0] += step**2
            self.covariance[place, place] += (OF_CELL * step) ** 2
            noise = math.hypot(noise, OF_NOISE * step)
        elif abs(off) > FAR * noise:
            self.covariance[0, 0] += step**2
        self._update(place, step, noise)
        return abs(off) / deviation

    def _count_strikes(self, place: int, off: float, *, is_far: bool) -> None:
        """A cell from a file whose first samples are far off, twice the same way with others as expected between,
        refutes it.
        """
        width, sign = self.widths[place - 1], math.copysign(1.0, off)
        self.is_refuted = False
        if not is_far:
            self._is_calm = True
            self._strikes.pop(width, None)
        elif width in self.filed and abs(off) > REFUTED and self.samples[place - 1] <= SETTLED:
            self.is_refuted = self._is_calm and self._strikes.get(width) == sign
            self._strikes[width], self._is_calm = sign, False

    def tell(self, values: Sequence[float], noise: float) -> None:
        """A sample of each cell, from a file."""
        self.filed = set(self.widths)
        for place, value in enumerate(values, 1):
            self._update(place, float(value - self.state[0] - self.state[place]), noise)

    def _variances(self, places: Sequence[int]) -> Array:
        """`[W]` of level and cell together."""
        held = self.covariance
        variances: Array = held[0, 0] + 2 * held[0, places] + held[places, places]
        return variances

    def _update(self, place: int, off: float, noise: float) -> None:
        seen = self.covariance[:, 0] + self.covariance[:, place]
        gain = seen / (seen[0] + seen[place] + noise**2)
        self.state += gain * off
        self.covariance -= np.outer(gain, seen)

    def offs(self, places: Sequence[int]) -> Array:
        """`[W]` logarithms of what rounds take over the first guess, now."""
        offs: Array = self.state[0] + self.state[places]
        return offs

    def cells(self, places: Sequence[int]) -> Array:
        """`[W]`: what cells are off, beside the level."""
        cells: Array = self.state[places]
        return cells

    def doubts(self, places: Sequence[int]) -> Array:
        """`[W]` standard deviations of what `offs` says, beyond that of the cell that is known best: what samples of a
        cell would tell, and not those of any.
        """
        variances = self._variances(places)
        doubts: Array = np.sqrt(np.maximum(variances - variances.min(), 0.0))
        return doubts


@dataclass(frozen=True)
class RoundCosts:
    """Of rounds of some requests, by the nodes of each: W widths."""

    seconds: Array  # [W] as they are thought to be now
    samples: Sequence[int]  # [W] how often each was measured by this server
    _row: CostRow
    _places: Sequence[int]

    def doubts(self) -> Array:
        """`[W]` standard deviations of the logarithms of the seconds, beyond that of the width that is known best."""
        return self._row.doubts(self._places)


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
        row, context = self._row(batch_size, mean_prefix, widths), context_class(mean_prefix)
        places = row.places(widths)
        guesses = np.array([first_guess(batch_size, width, context) for width in widths])
        return RoundCosts(guesses * np.exp(row.offs(places)), [row.samples[place - 1] for place in places], row, places)

    def seconds(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> Array:
        """`[W]` seconds of a round; arguments are those of `of_rounds`."""
        return self.of_rounds(batch_size, mean_prefix, widths).seconds

    @property
    def is_empty(self) -> bool:
        """No round was measured, so seconds are no seconds."""
        return not any(row.is_known for row in self.rows.values())

    def observe(self, batch_size: int, mean_prefix: float, num_nodes: int, seconds: float) -> None:
        """A round of `num_nodes` a request took `seconds`, from its beginning to the next one's."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        row, context = self._row(batch_size, mean_prefix, (num_nodes,)), context_class(mean_prefix)
        place = row.places((num_nodes,))[0]
        self.num_rounds += 1
        row.follow(self.num_rounds)
        value = math.log(seconds / first_guess(batch_size, num_nodes, context))
        was_known = row.samples[place - 1] > 1
        off = row.observe(place, value, math.sqrt(self.variance))
        if row.is_refuted:
            self._forget_file()
        elif was_known:
            shown = self.variance * min(off, FAR) ** 2
            self.variance += NOISE_PACE * (shown - self.variance)
            self.variance = min(max(self.variance, LEAST_NOISE**2), MOST_NOISE**2)

    def _forget_file(self) -> None:
        """Rows that a file told of begin anew."""
        self.rows = {key: row for key, row in self.rows.items() if not row.filed}

    def _row(self, batch_size: int, mean_prefix: float, widths: Sequence[int]) -> CostRow:
        key = batch_class(batch_size), context_class(mean_prefix)
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
        """Those that were measured, and their seconds when their row was served last."""
        held = {}
        for (size, context), row in sorted(self.rows.items()):
            offs = row.offs(row.places(row.widths))
            for width, samples, off in sorted(zip(row.widths, row.samples, offs.tolist(), strict=True)):
                if samples or width in row.filed:
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
