"""Two rules of supervision, without Ray: how often replicas may start again, and when a replica counts as alive.

Ray Serve retries a failing constructor a limited number of times, but replaces a replica that dies later without limit.
A model that dies at its first request would be loaded again and again. `RestartBudget` counts every start of a
deployment. Serve runs a `Supervisor` as one actor per deployment (`workers.app.replica_options`), which has the budget
and knows how far each start is.

A replica is alive if it made a token lately, or makes one when asked. A ping is not enough: a scheduler that waits for
a stopped rank answers pings. `TokenClock` remembers the last token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SUPERVISOR = "supervisor"
"""Name of the actor that keeps a deployment's `Supervisor`."""
IMPORTING, LOADING = "importing SGLang", "loading the model in its ranks"
FIRST_TOKEN, READY = "making the first token", "ready"
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


class RestartBudgetSpentError(RuntimeError):
    """Replicas restarted too often; the message says how often, and where to look."""


@dataclass
class RestartBudget:
    """Counts starts beyond the expected ones within a sliding window.

    Attributes:
        expected: starts that cost nothing: as many as replicas may live at once, and one more for each that retired.
        budget: further starts that are allowed within `window_s`.
    """

    expected: int
    budget: int
    window_s: float
    clock: Callable[[], float] = time.monotonic
    _starts: int = 0
    _restarts: deque[float] = field(default_factory=deque)

    def start(self) -> float:
        """Record a start and return the seconds to wait before it: 0 for expected ones, then 1, 2, 4, ... up to 30.

        Raises:
            RestartBudgetSpentError: there were already `budget` restarts within the window.
        """
        now = self.clock()
        while self._restarts and now - self._restarts[0] > self.window_s:
            self._restarts.popleft()
        self._starts += 1
        if self._starts <= self.expected:
            return 0.0
        if len(self._restarts) >= self.budget:
            raise RestartBudgetSpentError(
                f"replicas were restarted {self.budget} times in {self.window_s:.0f} s, which is the limit; find the "
                "cause in the logs of the last replicas and deploy again, or raise restart_budget."
            )
        self._restarts.append(now)
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (len(self._restarts) - 1))

    def retired(self) -> None:
        """Record that Serve took a replica down (autoscaling, a new version): one more start costs nothing."""
        self.expected += 1


@dataclass
class Supervisor(RestartBudget):
    """The budget, and how far each replica is on its way to its first token."""

    _stages: dict[str, tuple[str, float]] = field(default_factory=dict)

    def reached(self, replica: str, stage: str) -> None:
        """A replica, by its id in Serve, is at this stage from now on."""
        self._stages[replica] = (stage, self.clock())

    def stages(self) -> list[tuple[str, float]]:
        """Stage and seconds in it of every replica, in the order in which they began; of dead ones the last."""
        return [(stage, self.clock() - since) for stage, since in self._stages.values()]


@dataclass
class TokenClock:
    """Remembers when the engine made its last token, for any request.

    Attributes:
        fresh_s: seconds for which a token proves that the replica is alive.
    """

    fresh_s: float
    clock: Callable[[], float] = time.monotonic
    _last: float | None = field(default=None)

    def token(self) -> None:
        """Record a token."""
        self._last = self.clock()

    def is_fresh(self) -> bool:
        """True if there was a token within `fresh_s`."""
        return self._last is not None and self.clock() - self._last <= self.fresh_s

    def never(self) -> bool:
        """True before the first token."""
        return self._last is None
