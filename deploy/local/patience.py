"""Waits of the tests: for what happens, however late on a busy machine, and no longer than a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

SLOW_START_S = 300.0
"""Limit for a process without an engine to start, which takes seconds on an idle machine."""


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    """Return once `condition` is true; fail the test if that takes longer than the limit."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.1)
