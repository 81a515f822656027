"""95 % intervals over prompts: a prompt is what is drawn anew, because rounds of one answer resemble each other.

A statistic is a function of sums over rounds. Sums of each prompt are kept, prompts are drawn with replacement, and the
statistic is computed of each draw's sums (the percentile bootstrap over clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval; NaN where rounds say nothing of it."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """JSON-ready; what is no number is null."""
        return {name: _json_number(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Resampling:
    """Draws of `num_prompts` prompts with replacement, the same ones for every statistic: differences are paired."""

    num_prompts: int
    seed: int = 0

    @cached_property
    def weights(self) -> Floats:
        """`[DRAWS, num_prompts]`: how often each draw holds each prompt."""
        shares = np.full(self.num_prompts, 1.0 / self.num_prompts)
        return np.random.default_rng(self.seed).multinomial(self.num_prompts, shares, size=DRAWS).astype(np.float64)

    def estimate(self, sums: Floats, statistic: Callable[[Floats], Floats]) -> Estimate:
        """The statistic of all prompts, and its interval.

        Args:
            sums: `[num_prompts, K]`, K sums of each prompt.
            statistic: from `[n, K]` sums to n values; a division by 0 may be NaN, and such draws are left out.

        Raises:
            ValueError: there is no prompt, or another number of rows.
        """
        if not len(sums) or len(sums) != self.num_prompts:
            raise ValueError(f"an interval needs the sums of {self.num_prompts} prompts, at least 1; got {len(sums)}")
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(statistic(sums.sum(0, keepdims=True))[0])
            draws = statistic(self.weights @ sums)
        draws = draws[np.isfinite(draws)]
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (np.nan, np.nan)
        return Estimate(value, float(low), float(high))


def ratio(sums: Floats) -> Floats:
    """Of `[n, 2]` sums the first over the second: a mean over rounds, say."""
    quotient: Floats = sums[:, 0] / sums[:, 1]
    return quotient


def difference_of_ratios(sums: Floats) -> Floats:
    """Of `[n, 4]` sums: the first over the second less the third over the fourth."""
    difference: Floats = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    return difference


def correlation(sums: Floats) -> Floats:
    """Pearson's, of `[n, 6]` sums: count, x, y, x squared, y squared, x times y."""
    count, x, y, xx, yy, xy = sums.T
    spread = np.sqrt((xx - x * x / count) * (yy - y * y / count))
    pearson: Floats = np.where(spread > 1e-12, (xy - x * y / count) / spread, np.nan)
    return pearson


def correlation_terms(x: Floats, y: Floats) -> Floats:
    """`[n, 6]`: what each of n rounds adds to the sums of `correlation`."""
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def sums_by(prompts: npt.NDArray[np.int64], terms: Floats, num_prompts: int) -> Floats:
    """`[num_prompts, K]` sums of `[n, K]` terms, by the prompt of each of n rounds."""
    sums = np.zeros((num_prompts, terms.shape[1]))
    np.add.at(sums, prompts, terms)
    return sums


def ranks(values: Floats) -> Floats:
    """Ranks from 1 on; equals share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    mean_rank: Floats = ((last - counts + 1 + last) / 2.0)[place.reshape(-1)]
    return mean_rank


def columns(*values: Sequence[float] | Floats) -> Floats:
    """`[n, K]` of K rows of n values."""
    return np.stack([np.asarray(one, dtype=np.float64) for one in values], axis=1)


def _json_number(value: float) -> float | None:
    number: Any = float(value)
    return round(number, 6) if np.isfinite(number) else None
