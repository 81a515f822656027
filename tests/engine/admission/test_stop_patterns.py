"""A pattern that would hold the scheduler for hours ends its request after a second; others are searched as ever."""

from __future__ import annotations

import importlib
import re
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission import stop_patterns
from ddtree_sglang.engine.admission.stop_patterns import end_slow_patterns


def request(*patterns: str) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(stop_regex_strs=list(patterns)), finished_reason=None)


def search(req: Any, text: str) -> bool:
    return any(re.search(pattern, text) for pattern in req.sampling_params.stop_regex_strs)


def test_a_pattern_that_never_ends_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_patterns, "LONGEST_SEARCH_S", 0.2)
    req = request("(a+)+$")
    importlib.import_module("sglang.srt.managers.schedule_batch")
    begun = time.monotonic()
    assert end_slow_patterns(search, req, "a" * 40 + "b") is True
    assert time.monotonic() - begun < 5
    assert req.finished_reason.status_code == 400
    assert "(a+)+$" in req.finished_reason.message


@pytest.mark.parametrize(("text", "found"), [("bab", True), ("bbb", False)])
def test_other_patterns_are_searched_and_leave_no_alarm(text: str, found: bool) -> None:
    before = signal.getsignal(signal.SIGALRM)
    req = request("a.", "c$")
    assert end_slow_patterns(search, req, text) is found
    assert req.finished_reason is None
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_without_a_pattern_no_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "setitimer", lambda *_: pytest.fail("a clock was set"))
    assert end_slow_patterns(lambda req, text: True, request(), "a") is True
