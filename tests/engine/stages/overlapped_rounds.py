"""A server without models whose host runs ahead of its device: a round is launched while the one before it runs.

The host launches a round, then waits for the result of the round before it, as SGLang's overlapped loop does
(managers/scheduler.py, `event_loop_overlap`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.round_times import DeviceTimes
from tests.engine.stages.served_rounds import Served


@dataclass
class DeviceEvent:
    """On the one stream of a server's device."""

    server: Overlapped
    at: float | None = None

    def record(self) -> None:
        """Behind the work that was launched so far."""
        self.at = max(self.server.device_free, self.server.now)

    def query(self) -> bool:
        """Whether that work is done."""
        assert self.at is not None, "an event is recorded before it is asked"
        return self.at <= self.server.now

    def elapsed_time(self, end_event: DeviceEvent) -> float:
        """Milliseconds."""
        assert self.at is not None
        assert end_event.at is not None
        assert end_event.query(), "torch raises here"
        return 1e3 * (end_event.at - self.at)


@dataclass
class Overlapped(Served):
    """`seconds_of` is the device's share of a round."""

    launching: float = 0.0  # seconds of the host that a round takes to launch
    scheduling: float = 0.0  # and between two rounds
    device_free: float = 0.0
    # On the device, of work whose result the host has not seen, and how long it then works with it beside scheduling.
    ends: deque[tuple[float, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.started = self.now

    def launch(self, seconds: float) -> None:
        """Kernels reach the device one after another, so a round is not over before the last was launched."""
        begins = max(self.device_free, self.now)
        self.now += self.launching
        self.device_free = max(begins + seconds, self.now)
        self.ends.append((self.device_free, 0.0))

    def finish(self, _seconds: float) -> None:
        """The host waits for what was launched before."""
        if len(self.ends) > 1:
            end, work = self.ends.popleft()
            self.now = max(self.now, end) + work
        self.now += self.scheduling
        self.seconds = max(self.device_free, self.now) - self.started

    def prefill(self, seconds: float, work: float = 0.0) -> None:
        """Launched like a round; its result gives the host as much work as that."""
        self.device_free = max(self.device_free, self.now + self.launching) + seconds
        self.now += self.launching
        self.ends.append((self.device_free, work))
        self.budget.interrupt()
        self.finish(seconds)


def timed_by_events(widths: tuple[int, ...], **options: object) -> Overlapped:
    """A server whose controller asks the device's events."""
    server = Overlapped(AdaptiveBudget(widths, lag=1), **options)  # type: ignore[arg-type]
    server.budget.times = DeviceTimes(lambda: DeviceEvent(server), lambda: server.now)
    return server


def timed_by_the_host(widths: tuple[int, ...], **options: object) -> Overlapped:
    """The same by the host's clock."""
    return Overlapped(AdaptiveBudget(widths, lag=1), **options)  # type: ignore[arg-type]
