"""A step says that it runs, how long, how far, and how it ended."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from workers import progress
from workers.progress import step


@pytest.fixture(autouse=True)
def quick_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.02)


def seconds_left_out(text: str) -> list[str]:
    return [re.sub(r"\d+ s", "N s", line) for line in text.splitlines()]


def wait_for_line(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """What is printed until a line with these words is."""
    seen, deadline = "", time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < deadline, seen
        seen += capsys.readouterr().out
        time.sleep(0.01)
    return seen


def test_a_log_file_gets_a_line_at_the_start_again_and_again_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with step("loading", lambda: "3 of 4"):
        seen = wait_for_line(capsys, "3 of 4")
    lines = seconds_left_out(seen + capsys.readouterr().out)
    assert lines[0] == "... loading"
    assert set(lines[1:-1]) == {"... loading (N s, 3 of 4)"}
    assert lines[-1] == "done: loading (N s, 3 of 4)"


@pytest.mark.parametrize(("error", "mark"), [(ValueError, "failed:"), (KeyboardInterrupt, "stopped:")])
def test_a_step_that_ends_early_says_so(
    capsys: pytest.CaptureFixture[str], error: type[BaseException], mark: str
) -> None:
    with pytest.raises(error), step("loading"):
        raise error
    assert seconds_left_out(capsys.readouterr().out)[-1] == f"{mark} loading (N s)"


def test_a_detail_that_fails_is_shown_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def detail() -> str:
        raise OSError("gone")

    with step("loading", detail):
        wait_for_line(capsys, "OSError: gone")
    assert seconds_left_out(capsys.readouterr().out)[-1] == "done: loading (N s, OSError: gone)"


def test_a_terminal_redraws_one_line_that_fits_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    with step("a title that is much longer than that"):
        seen = wait_for_line(capsys, "...")
    assert "\n" not in seen
    assert all(len(part) < 20 for part in seen.split("\r\x1b[K"))
    assert capsys.readouterr().out.endswith("done: a title that is much longer than that (1 s)\n")


class NobodyReads(io.StringIO):
    """A pipe whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_step_is_done_though_nobody_reads_of_it() -> None:
    done = []
    with step("ending replicas", stream=NobodyReads()):
        done.append("ended")
    assert done == ["ended"]


def test_a_stop_does_not_wait_for_the_detail_that_is_being_asked_for() -> None:
    asked, may_answer, answers = threading.Event(), threading.Event(), list[str]()

    def detail() -> str:
        asked.set()
        may_answer.wait(30)
        answers.append("3 of 4")
        return answers[-1]

    def stopped() -> None:
        with step("loading", detail):
            assert asked.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert answers == []
    may_answer.set()
