"""When what seems well known is looked at again: plain decoding where drafts pay, and trees of widths that were left.

What is known of a cell may be wrong although it was measured often: beside a noisy neighbour, by another server, in a
mood of the machine that was charged to it. A width that is never served again would never show it. So each row of
costs keeps a calendar. Waits are doubled each time in vain, and short again behind a look that was a surprise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ddtree_sglang.core.cost_row import CALM, Array
from ddtree_sglang.core.hope import LEAST_LOSS
from ddtree_sglang.core.width_tries import Try

FIRST_PLAIN, LONGEST_PLAIN = 16, 256
"""Where drafts pay, rounds between two without one, of the same number of requests. Doubled each time; behind one that
took what was not expected the next comes soon. Beside what may be lost by other tries."""
SOON = CALM + 1
"""How short: others are measured between, so that it can be told from the machine's mood."""
HOPELESS, RARELY = 3.0, 1024
"""Where a draft pays by more, hardly a mistake of costs hides plain decoding, so rounds between two are as many, until
one takes what was not expected."""
FIRST_TREES, LONGEST_TREES = 32, 256
"""Rounds between two looks at trees of another width than the best, in the same way."""
STALE = 64
"""Rounds for which a width was not served before it is looked at again."""
HOPED = 0.3
"""By how much, as a logarithm, what is known of a width's rounds may be too dear. What a table got wrong beside a
neighbour that came and went was 0.26 to 0.3 off (benchmarks/LOG.md, 2026-11-29)."""
SURPRISE = 3.0
"""Standard deviations of a sample by which a look must be faster than thought to be one."""


@dataclass
class SecondLooks:
    """The calendar of one row of costs; rounds are counted by the server."""

    _plain_waited: int = 0
    _plain_wait: int = FIRST_PLAIN
    _is_plain_doubted: bool = False  # the last plain round took what was not expected
    _looked: int | None = None  # the round of the last look at a tree
    _wait: int = FIRST_TREES
    _again: int | None = None  # nodes of a look that was a surprise
    _number: int = 0  # of the last round that was asked about
    _served: dict[int, int] = field(default_factory=dict)  # by nodes: the last round

    def is_time_for_plain(self, behind: float) -> bool:
        """Although a draft pays by a factor `behind`; asked once in each round that would draft."""
        self._plain_waited += 1
        if self._plain_waited < (RARELY if behind > HOPELESS and not self._is_plain_doubted else self._plain_wait):
            return False
        self._plain_waited, self._plain_wait = 0, min(2 * self._plain_wait, LONGEST_PLAIN)
        return True

    def took(
        self, num_nodes: int, seconds: float, expected: float, noise: float, *, is_far: bool, is_try: bool
    ) -> None:
        """A round's time is known, and whether it is far from what was expected, by a sample's deviation `noise`."""
        if num_nodes == 1:
            if is_far:
                self._plain_waited = max(0, self._plain_wait - SOON)
            self._is_plain_doubted = is_far
            return
        self._served[num_nodes] = max(self._number, self._served.get(num_nodes, 0))
        if is_try and seconds < expected * math.exp(-SURPRISE * noise):
            self._again, self._wait = num_nodes, FIRST_TREES

    def tree(
        self,
        widths: Sequence[int],
        tokens: Array,  # that a round emits, at least of these W
        seconds: Array,  # that it takes
        best: int,  # the place of the best
        number: int,  # of the round
        saved: float,  # rounds of the best that may be lost
    ) -> Try | None:
        """A tree whose width is to be looked at in this round; plain decoding, of width 1, has times of its own."""
        self._served[widths[best]] = self._number = number
        if self._looked is None:
            self._looked = number
        waited = number - self._looked
        if self._again is not None:
            if waited < SOON:
                return None
            again, self._again = self._again, None
            if again in widths and again != widths[best]:
                # It took less than is thought of it.
                return self._look(widths.index(again), widths, number, LEAST_LOSS)
        if waited < self._wait:
            return None
        tokens, seconds = tokens[: len(widths)], seconds[: len(widths)]
        rates = tokens / seconds
        losses = np.maximum(seconds / seconds[best] - tokens / tokens[best], LEAST_LOSS)
        hopeful = [
            place
            for place, width in enumerate(widths)
            if width > 1
            and place != best
            and number - self._served.get(width, -STALE) >= STALE
            and rates[place] * math.exp(HOPED) > rates[best]
            and losses[place] <= saved
        ]
        if not hopeful:
            return None
        # In turn: the one that was left longest.
        place = min(hopeful, key=lambda one: (self._served.get(widths[one], -STALE), -float(rates[one])))
        self._wait = min(2 * self._wait, LONGEST_TREES)
        return self._look(place, widths, number, float(losses[place]))

    def _look(self, place: int, widths: Sequence[int], number: int, loss: float) -> Try:
        self._looked = self._served[widths[place]] = number
        return Try(place, loss)
