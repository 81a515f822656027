"""Progress a person can watch: one line per step, with its seconds, repeated while the step runs.

Standard library only: `deploy/` also runs it under the system's Python, before anything is installed. Knows nothing
about what the steps do.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PLAIN_INTERVAL_S = 10.0  # a log file gets a line this often; a terminal redraws its one line every second
LONGEST_JOIN_S = 0.5


def say(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print one line at once, also into a pipe; to stdout unless given a stream.

    A reader that has gone away, or a full disk, ends no step: what a step does must not depend on who watches.
    """
    with suppress(OSError):
        print(text, end=end, file=stream, flush=True)


@contextmanager
def step(title: str, detail: Callable[[], str] | None = None, stream: TextIO | None = None) -> Iterator[None]:
    """Show `title` with the seconds gone by until the block ends.

    Args:
        title: what the step does.
        detail: adds how far it is. Called in another thread; an error of it is shown in its place.
        stream: where to print; stdout unless given.
    """
    started = time.monotonic()
    finished = threading.Event()
    on_terminal = (stream or sys.stdout).isatty()

    def line(mark: str, with_detail: bool = True) -> str:
        reached = _described(detail) if with_detail else ""
        return f"{mark} {title} ({time.monotonic() - started:.0f} s{', ' + reached if reached else ''})"

    def beat() -> None:
        while not finished.wait(1.0 if on_terminal else PLAIN_INTERVAL_S):
            if on_terminal:
                # A line that wraps could not be redrawn.
                shown = line("...")[: shutil.get_terminal_size().columns - 1]
                say(f"\r\x1b[K{shown}", stream, end="")
            else:
                say(line("..."), stream)

    if not on_terminal:
        say(f"... {title}", stream)
    thread = threading.Thread(target=beat, daemon=True)
    mark = "failed:"
    try:
        thread.start()
        yield
        mark = "done:"
    except KeyboardInterrupt:
        mark = "stopped:"
        raise
    finally:
        finished.set()
        # It may sit in `detail`, for which a stop does not wait.
        thread.join(timeout=LONGEST_JOIN_S)
        say(("\r\x1b[K" if on_terminal else "") + line(mark, with_detail=mark == "done:"), stream)


def _described(detail: Callable[[], str] | None) -> str:
    try:
        return detail() if detail is not None else ""
    except Exception as error:  # noqa: BLE001  (the step goes on)
        return f"{type(error).__name__}: {error}"
