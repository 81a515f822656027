"""Commands of a GPU proof: real processes with their status, their output, their limit."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import gpu_lab


def run_really(code: str, timeout_s: float | None) -> tuple[int, str, float]:
    """Status, output and seconds of a real Python that runs `code`."""
    seen: list[bytes] = []
    started = time.monotonic()
    status = gpu_lab.execute([sys.executable, "-u", "-c", code], os.environ, timeout_s, seen.append)
    return status, b"".join(seen).decode(), time.monotonic() - started


def test_a_command_gives_its_status_and_both_its_outputs() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    assert run_really(code, None)[:2] == (7, "out\nerr\n")
    assert run_really("import os; os.kill(os.getpid(), 9)", 60.0)[0] == 137


def test_a_command_over_its_limit_is_told_to_end_and_may_say_what_it_has() -> None:
    code = "import time\ntry: time.sleep(60)\nfinally: print('kept')"
    ending = f"import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n{code}"
    status, output, seconds = run_really(ending, 1.0)
    assert status == gpu_lab.TIMED_OUT
    assert output.startswith("kept\n")
    assert seconds < 30


def test_a_command_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lab, "KILL_AFTER_S", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    status, output, seconds = run_really(deaf, 1.0)
    assert (status, output) == (gpu_lab.TIMED_OUT, "deaf\n")
    assert seconds < 30


def test_what_a_command_left_running_holds_nothing_up() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('gone')"
    status, output, seconds = run_really(code, 1.0)
    assert (status, output) == (gpu_lab.TIMED_OUT, "gone\n")
    assert seconds < 30


def test_an_interrupt_ends_the_command_too(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); print('up'); time.sleep(60)"

    def interrupt(_output: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_lab.execute([sys.executable, "-u", "-c", code], os.environ, None, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
