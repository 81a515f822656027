"""A row of the table of costs: what rounds of some requests take, by the nodes of each, learned by a filter.

Logarithms are estimated by a Kalman filter. Its state is a level, which all cells share and which drifts fast, because
machines have moods: a neighbour or a clock makes all rounds slower for a while; and what each cell is off a first
guess, which hardly changes. Before it is measured, a cell is thought to be off as its neighbours are (a Gaussian
process over the logarithm of the nodes), and a little on its own. So two cells are compared by samples that lie near in
time, one that was measured once is believed a little, and how much the comparison is to be believed is known
(`doubts`).

A cell's first sample counts little, because it may hold what is done once. One that is far from what was expected is
hardly believed: it may be the clock's fault, a mood, or a change of the cell, and widens what is thought of all three,
so that the next ones decide: some the same way, with others as expected between, are a change of the cell. How far is
far follows from how far samples usually are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ddtree_sglang.core.compiled import compiled
from ddtree_sglang.core.hope import doubts_of

Array: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = npt.NDArray[np.intp]

SMOOTH, OWN = 0.3, 0.08
"""Standard deviation of what a cell is off the first guess: with its neighbours, and alone."""
REACH = 1.0
"""Powers of two of nodes within which cells are neighbours."""
UNKNOWN_LEVEL, NEAR_LEVEL = 30.0, 1.0
"""Standard deviation of a level before a row's first sample: of the first row, and of one that has others beside it."""
LEVEL_DRIFT, CELL_DRIFT = 0.01, 0.002
"""What a level and a cell change in a round, as standard deviations."""
FIRST_NOISE = 0.5
"""Standard deviation of a cell's first sample, in which products of new shapes may be compiled."""
FAR = 3.0
"""Standard deviations from which a sample is hardly believed."""
OF_NOISE, OF_CELL = 2.5, 0.2
"""What a far sample says of the clock and of its cell, beside what it says of the machine's mood. Of the cell only if
another one was served before: while one is served alone, slow rounds would make it unknown."""
LARGEST_STEP = math.log(3.0)
"""A sample counts as at most so far off, in logarithms."""
REFUTED = math.log(2.0)
"""A cell that changes by more, beside others, shows that a file is of something else."""
CALM = 3
"""Samples as expected between two that are far off, after which it is not the machine's mood."""
STRIKES_UP, STRIKES_DOWN = 2, 1
"""Far samples of a cell behind another one the same way, each with so many others between, that are a change of the
cell. Single slow rounds come twice by accident, too; nothing makes a machine faster for a moment."""
SETTLED = 8
"""Samples of a cell after which it is its own, whatever a file said."""


def _kernel(first: Array, second: Array) -> Array:
    """`[W, V]`: by how much cells of these nodes are off alike, as a share of SMOOTH squared."""
    return np.exp(-0.5 * ((np.log2(first)[:, None] - np.log2(second)) / REACH) ** 2)  # type: ignore[no-any-return]


@compiled("void(float64[:, :], float64[:], float64[:], float64)")
def _drift(covariance: Array, most: Array, drift: Array, rounds: float) -> None:
    """Variances grow by so many rounds' `drift [W + 1]`, up to `most [W + 1]`."""
    for place in range(len(most)):
        held = covariance[place, place]
        covariance[place, place] = held + min(max(most[place] - held, 0.0), rounds * drift[place])


@compiled("void(float64[:], float64[:, :], int64, float64, float64)")
def _update(state: Array, covariance: Array, place: int, off: float, noise: float) -> None:
    """A sample of the cell at `place`, which is `off` and has this standard deviation, in `state [W + 1]`."""
    seen = covariance[:, 0] + covariance[:, place]
    gain = seen / (seen[0] + seen[place] + noise**2)
    for first in range(len(state)):
        state[first] += gain[first] * off
        for second in range(len(state)):
            covariance[first, second] -= gain[first] * seen[second]


@compiled(
    "Tuple((float64, float64, boolean))(float64[:], float64[:, :], float64[:], float64[:], float64, int64, float64, "
    "float64, float64)"
)
def _observe(
    state: Array,
    covariance: Array,
    most: Array,
    drift: Array,
    rounds: float,
    place: int,
    value: float,
    noise: float,
    variance: float,  # noise squared
) -> tuple[float, float, bool]:
    """What so many rounds change, and a sample of the cell at `place`, unless it is far from what was expected.

    Returns how far it is off, the standard deviation of that, and whether it was learned from.
    """
    _drift(covariance, most, drift, rounds)
    off = value - state[0] - state[place]
    deviation = np.sqrt(covariance[0, 0] + 2 * covariance[0, place] + covariance[place, place] + variance)
    is_expected = abs(off) <= FAR * deviation and abs(off) <= FAR * noise
    if is_expected:
        _update(state, covariance, place, off, noise)
    return off, deviation, is_expected


@compiled("void(float64[:], int64[:], Array(float64, 1, 'A', readonly=True), float64[:])")
def _seconds(state: Array, places: Places, guesses: Array, seconds: Array) -> None:
    """Fill `seconds [W]`, see `CostRow.seconds`; to return an array takes longer than all else."""
    for index in range(len(places)):
        seconds[index] = guesses[index] * np.exp(state[0] + state[places[index]])


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
        self._most = self._drift = np.zeros(0)  # variances: the most of level and cells, and what a round adds
        self.samples = [0] * len(widths)
        self._places: dict[tuple[int, ...], Places] = {}  # of widths that were asked for; cells stay where they are
        self.filed: set[int] = set()  # nodes of cells that were read from a file
        self.seen_at = 0
        # By nodes, if a cell's last sample was far off: how far, and how many before it were, the same way.
        self._strikes: dict[int, tuple[float, int]] = {}
        self._calm = 0  # samples as expected, of any cell, since the last of those
        self._served = 0  # place of the last sample
        self._rested = 0.0  # variance that rests since then have added to the level's
        self.is_refuted = False  # a sample says that what a file said of these cells is wrong

    @property
    def is_known(self) -> bool:
        """Some cell was measured, now or by the server that wrote a file."""
        return bool(self.filed) or any(self.samples)

    def _prior_covariance(self, widths: Array) -> Array:
        covariance: Array = self.smooth**2 * _kernel(widths, widths) + OWN**2 * np.eye(len(widths))
        return covariance

    def places(self, widths: Sequence[int]) -> Places:
        """`[W]`: where cells stand in the state; those that are new join with what their neighbours say."""
        asked = tuple(widths)
        if (places := self._places.get(asked)) is None:
            for width in asked:
                if width not in self.widths:
                    self._join(width)
            places = self._places[asked] = np.array([1 + self.widths.index(width) for width in asked], dtype=np.intp)
        return places

    def samples_of(self, widths: Sequence[int]) -> list[int]:
        """`[W]`: how often each was measured by this server; all of them were asked for."""
        if self.widths[: len(widths)] == list(widths):
            return self.samples[: len(widths)]
        return [self.samples[self.widths.index(width)] for width in widths]

    def place(self, width: int) -> int:
        """Where the cell of so many nodes stands in the state."""
        if width not in self.widths:
            self._join(width)
        return 1 + self.widths.index(width)

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

    def rest(self, variance: float, most: float) -> None:
        """Nothing was served for a while, in which the machine's mood may have changed by as much, and since the row's
        last sample by `most`.
        """
        more = min(variance, most - self._rested)
        self._rested += more
        self.covariance[0, 0] += more

    def observe(self, place: int, value: float, noise: float, rounds: int) -> float:
        """One sample of the cell at `place`; how far it is off, in standard deviations.

        `rounds`: of any row, that were measured so far.
        """
        passed, self.seen_at = rounds - self.seen_at, rounds
        if len(self._most) != len(self.state):
            self._most = np.full(len(self.state), self.smooth**2 + OWN**2)
            self._drift = np.full(len(self.state), CELL_DRIFT**2)
            self._most[0], self._drift[0] = NEAR_LEVEL**2, LEVEL_DRIFT**2
        self.samples[place - 1] += 1
        self._rested = 0.0
        if self.samples[place - 1] == 1:
            noise = FIRST_NOISE
        off, deviation, is_expected = _observe(
            self.state, self.covariance, self._most, self._drift, passed, place, value, noise, noise**2
        )
        if is_expected:
            self._count_strikes(place, off, is_far=False)
            self._served = place
        else:
            self._learn_from_far(place, off, noise, is_far=abs(off) > FAR * deviation)
        return abs(off) / deviation

    def _learn_from_far(self, place: int, off: float, noise: float, *, is_far: bool) -> None:
        """Of a sample that is `off` by more than samples are; far: by more than the doubt of its cell explains."""
        is_cell = self._count_strikes(place, off, is_far=is_far)
        step = max(-LARGEST_STEP, min(LARGEST_STEP, off)) if is_far else off
        is_other, self._served = place != self._served, place
        if is_cell:
            # Others were as expected between: it is the cell.
            self.covariance[place, place] += step**2
        elif is_far:
            # The clock, the machine's mood or, less probably, the cell: what comes next will tell.
            self.covariance[0, 0] += step**2
            if is_other:
                self.covariance[place, place] += (OF_CELL * step) ** 2
            noise = math.hypot(noise, OF_NOISE * step)
        else:
            self.covariance[0, 0] += step**2
        _update(self.state, self.covariance, place, step, noise)

    def _count_strikes(self, place: int, off: float, *, is_far: bool) -> bool:
        """Whether a cell's sample is far off as its last ones were, with CALM of others as expected between.

        If it is one of the first of a cell from a file, and off by much, it refutes the file.
        """
        width = self.widths[place - 1]
        self.is_refuted = False
        if not is_far:
            self._calm += 1
            self._strikes.pop(width, None)
            return False
        before, count = self._strikes.get(width, (0.0, 0))
        is_again = before * off > 0
        is_first = width in self.filed and self.samples[place - 1] <= SETTLED
        is_much = min(abs(before), abs(off)) > REFUTED
        self.is_refuted = is_again and self._calm > 0 and is_first and is_much
        count = count + (self._calm >= CALM) if is_again else 0
        self._strikes[width], self._calm = (off, count), 0
        return count >= (STRIKES_UP if off > 0 else STRIKES_DOWN)

    def tell(self, values: Sequence[float], noise: float) -> None:
        """A sample of each cell, from a file."""
        self.filed = set(self.widths)
        for place, value in enumerate(values, 1):
            _update(self.state, self.covariance, place, float(value - self.state[0] - self.state[place]), noise)

    def offs(self, places: Places) -> Array:
        """`[W]` logarithms of what rounds take over the first guess, now."""
        offs: Array = self.state[0] + self.state[places]
        return offs

    def seconds(self, places: Places, guesses: Array) -> Array:
        """`[W]` of rounds at these places, now, by their first guesses `[W]`."""
        seconds = np.empty(len(places))
        _seconds(self.state, places, guesses, seconds)
        return seconds

    def cells(self, places: Places) -> Array:
        """`[W]`: what cells are off, beside the level."""
        cells: Array = self.state[places]
        return cells

    def doubts(self, places: Places) -> Array:
        """`[W]` standard deviations of what `offs` says, beyond that of the cell that is known best: what samples of a
        cell would tell, and not those of any.
        """
        return doubts_of(self.covariance, places)
