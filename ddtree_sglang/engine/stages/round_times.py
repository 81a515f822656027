"""What each round took: by the host's clock, or by events on the device, where the host runs ahead of it.

A round takes from its beginning to the next one's, so the scheduler's own work counts. Nobody waits for a device.

By the host's clock, where scheduling overlaps, what lies between two beginnings is taken for the time of the last but
one, as the host begins a round when it has the result of the one before the last. That is true only while the device is
the slower one, and nothing waits for the last one's result. Events on the device's own stream lie between the rounds'
work whoever is slower: a device that waits for the host waits between them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from ddtree_sglang.engine.stages.round_records import Decision


class Event(Protocol):
    """A point in the order of a device's work, as `torch.cuda.Event(enable_timing=True)` is one."""

    def record(self) -> None:
        """Behind the work that was launched so far."""

    def query(self) -> bool:
        """Whether that work is done."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds up to a later one, both done."""


class LaunchedRound(NamedTuple):
    """What a round was."""

    batch_size: int
    mean_prefix: float
    row: tuple[int, int]  # of the table of costs
    decision: Decision


class TimedRound(NamedTuple):
    """A round whose time is known."""

    round: LaunchedRound
    seconds: float  # as others like it would take in a row
    rounds_ago: int  # of the one that begins
    passed: float  # seconds up to the next one


class RoundTimes:
    """By the host's clock; `begin`, then `launched`, once a round."""

    def __init__(self, lag: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        """`lag`: rounds that the host is behind the device."""
        self.clock = clock
        self._lag = lag
        self._began: float | None = None  # the last round, unless something else was run since
        self._left: float | None = None  # the last one before that
        self._launched: deque[LaunchedRound] = deque(maxlen=lag + 1)

    def begin(self) -> tuple[list[TimedRound], float | None]:
        """A round begins: rounds whose time is known now, and for how long none was run, None if there was no pause."""
        now = self.clock()
        began, self._began = self._began, now
        rested, self._left = None if self._left is None else now - self._left, None
        return self._known(began, now), rested

    def _known(self, began: float | None, now: float) -> list[TimedRound]:
        if began is None or len(self._launched) <= self._lag:
            return []
        return [TimedRound(self._launched[0], now - began, 1 + self._lag, now - began)]

    def launched(self, one: LaunchedRound) -> None:
        """The round's work has been launched."""
        self._launched.append(one)

    def interrupt(self) -> None:
        """Something else than a round was run, so the time up to the next one is not a round's."""
        self._left = self._began if self._left is None else self._left
        self._began = None
        self._launched.clear()


@dataclass
class _Start:
    """A round's beginning on the device."""

    event: Event
    number: int
    host_began: float
    is_sample: bool  # something else lies neither right before it nor right behind
    launched: LaunchedRound | None = None

    def is_of(self, one: LaunchedRound) -> None:
        """What was launched then."""
        self.launched = one

    def spoil(self) -> None:
        """Something else follows."""
        self.is_sample = False


MOST_AWAITED = 8
"""Rounds whose end is awaited: more than a host can be ahead."""
LAUNCH_PACE = 1.02
"""By what factor a launch may have become longer in a round; shorter ones are followed at once: hosts are held up."""


class DeviceTimes(RoundTimes):
    """By events on the stream that rounds are launched to, of a host that is one round ahead.

    Where rounds take the host longer to launch than the device to run, they take as long as that. Of a single one among
    dearer rounds, whose work the device still has, events say less. So a round takes no less than launching one does,
    with a draft or without.

    The first round behind something else is no sample: the host deals with the result of that before the next round.
    """

    def __init__(
        self,
        new_event: Callable[[], Event],
        clock: Callable[[], float] = time.perf_counter,
        *,
        host_waits: bool = False,
    ) -> None:
        """`new_event`: makes one that is timed, of the device that rounds run on; `host_waits`: the host waits for the
        device while it launches a round, so that the time says nothing of the launching.
        """
        super().__init__(clock=clock)
        self._new_event, self._host_waits = new_event, host_waits
        self._starts: deque[_Start] = deque(maxlen=MOST_AWAITED)
        self._launching: dict[bool, float] = {}  # seconds of the host, by whether the round drafts
        self._number = 0

    def _known(self, began: float | None, now: float) -> list[TimedRound]:
        known, self._number = [], self._number + 1
        while len(self._starts) > 1 and self._starts[1].event.query():
            start = self._starts.popleft()
            if start.launched is not None and start.is_sample:
                passed = start.event.elapsed_time(self._starts[0].event) / 1e3
                seconds = max(passed, self._launching.get(_drafts(start.launched), 0.0))
                known.append(TimedRound(start.launched, seconds, self._number - start.number, passed))
        event = self._new_event()
        event.record()
        self._starts.append(_Start(event, self._number, now, is_sample=began is not None))
        return known

    def launched(self, one: LaunchedRound) -> None:
        """See `RoundTimes.launched`."""
        if not self._starts:
            return
        start = self._starts[-1]
        start.is_of(one)
        if not self._host_waits:
            seconds, kind = self.clock() - start.host_began, _drafts(one)
            self._launching[kind] = min(seconds, LAUNCH_PACE * self._launching.get(kind, seconds))

    def interrupt(self) -> None:
        """See `RoundTimes.interrupt`."""
        super().interrupt()
        if self._starts:
            self._starts[-1].spoil()


def _drafts(one: LaunchedRound) -> bool:
    return one.decision.num_nodes > 1
