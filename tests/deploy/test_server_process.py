"""A server's end: all of its processes are gone, and nobody waits for what only has to be reaped."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.local.server_process import ServerProcess

CHILDREN = 3
_PR_SET_CHILD_SUBREAPER = 36
SERVER = f"""
import os, time
for _ in range({CHILDREN}):
    if os.fork() == 0:
        break
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def _nobody_reaps() -> Iterator[None]:
    """Orphans become this process's children, which are left as they are until the test is over."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.mark.usefixtures("_nobody_reaps")
def test_an_end_does_not_wait_for_what_nobody_reaps(tmp_path: Path) -> None:
    process = ServerProcess("server", [sys.executable, "-u", "-c", SERVER], "", tmp_path / "log", {})
    with process:
        deadline = time.monotonic() + 30
        while len(pids := process.log_path.read_text().split()) <= CHILDREN:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        process.stop(grace_s=0.0)
        # It used to be ten.
        assert time.monotonic() - began < 5
    states = {pid: state(pid) for pid in pids if pid != str(process.pid)}
    assert set(states.values()) == {"Z"}, "they are there, and hold nothing"


def state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
