"""Progress a person can watch: one line per step, with its time, alive while the step runs.

Standard library only: it also runs under the system's Python, before anything is installed. Knows nothing
about what the steps do.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_INTERVAL_S = 10.0  # a log file gets a line this often; a terminal redraws its one line every second


def say(text: str) -> None:
    """Print one line at once, also when stdout is a pipe."""
    print(text, flush=True)


@contextmanager
def step(title: str, detail: Callable[[], str] | None = None) -> Iterator[None]:
    """Show `title` with the seconds gone by until the block ends; `detail()` adds what is reached so far."""
    started = time.monotonic()
    finished = threading.Event()
    on_terminal = sys.stdout.isatty()

    def line(mark: str) -> str:
        reached = detail() if detail is not None else ""
        return f"{mark} {title} ({time.monotonic() - started:.0f} s{', ' + reached if reached else ''})"

    def beat() -> None:
        while not finished.wait(1.0 if on_terminal else PLAIN_INTERVAL_S):
            if on_terminal:
                print(f"\r\x1b[K{line('...')}", end="", flush=True)
            else:
                say(line("..."))

    if not on_terminal:
        say(f"... {title}")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    mark = "failed:"
    try:
        yield
        mark = "done:"
    finally:
        finished.set()
        thread.join()
        say(("\r\x1b[K" if on_terminal else "") + line(mark))
