"""A `stop_regex` that takes too long ends its own request: Python's matcher may take hours over forty characters.

Each step of a decode searches the end of the answer for it, in the scheduler's only thread, so that `(a+)+$` over an
answer of a's, which a `logit_bias` makes certain, holds every request of the server.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import FrameType
from typing import Any

LONGEST_SEARCH_S = 1.0
"""For one look at the patterns of one request, which takes microseconds."""


class PatternTooSlow(Exception):
    """The time is over."""


def end_slow_patterns(original: Callable[..., bool], req: Any, *args: Any, **kwargs: Any) -> bool:
    """AROUND hook on `Req._check_str_based_finish`: a search that takes too long is a 400 of its own."""
    if not req.sampling_params.stop_regex_strs:
        return original(req, *args, **kwargs)
    try:
        with _at_most(LONGEST_SEARCH_S):
            return original(req, *args, **kwargs)
    except PatternTooSlow:
        from sglang.srt.managers.schedule_batch import FINISH_ABORT

        message = (
            f"stop_regex must be found or not within {LONGEST_SEARCH_S:g} s, got none of both for "
            f"{req.sampling_params.stop_regex_strs!r}; avoid a repetition inside a repetition."
        )
        req.finished_reason = FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError")
        return True


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `PatternTooSlow` in here after that time; no limit outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise PatternTooSlow
