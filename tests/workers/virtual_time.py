"""An event loop whose time passes only while it waits: what is timed comes out alike on a starved machine.

For code without threads, sockets or processes: nothing but the loop's own timers wakes it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

# Of a test that waits for nothing and does not end; a whole answer takes some dozens.
MAX_TURNS = 20_000


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """When nothing is ready, it is the time of the next timer at once.

    A test that would hang fails instead: it waits without a timer, or turns without end and without waiting.
    """

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class _Clock(selectors.SelectSelector):
    """Where an event loop waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self._turns += 1
        if timeout is None and not ready:
            raise RuntimeError("everything waits, and nothing is left that could wake it")
        if timeout and not ready:
            self.now += timeout
            self._turns = 0
        if self._turns > MAX_TURNS:
            self._turns = 0
            raise RuntimeError(f"{MAX_TURNS} turns of the event loop, and no time has passed")
        return ready


def run(body: Callable[[], Coroutine[Any, Any, None]], limit_s: float = 20.0) -> None:
    """Run a test in virtual time; one that takes more than the limit of it hangs."""

    async def limited() -> None:
        async with asyncio.timeout(limit_s):
            await body()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(limited())


def clock() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()
