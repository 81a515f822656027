"""A copy of `deploy/` whose `.venv` runs a fake server, and what its tests ask about processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FAKE_SERVER = Path(__file__).resolve().parent / "fake_server.py"
FAKE_PYTHON = """#!/usr/bin/env bash
# Stands in for .venv/bin/python: notes each call, and serves with fake_server.py instead of SGLang.
echo "$@" >> "{notes}"
echo "${{PYTHONPATH-unset}}" >> "{notes}.pythonpath"
if [[ "$*" == *sglang.launch_server* ]]; then exec "{python}" "{server}" "$@"; fi
echo "{model}"
"""


# For what takes seconds, on a machine that is busy with other things.
PATIENCE_S = 300.0


def alive(pid: int) -> bool:
    """True while a process of that id runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Fail the test when `condition` does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.05)


def _listen_to_ctrl_c() -> None:
    """A test run in the background has SIGINT ignored, and its children would inherit that; a terminal's have not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Checkout:
    """A copy of `deploy/` whose environment counts as set up and serves with the fake server."""

    root: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # variables that `run.sh` does not get

    def start(self, *flags: str, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start `run.sh` from `folder` (default: where the tests run) in a group of its own, as a shell would."""
        given = {**os.environ, "FAKE_PIDS": str(self.root / "pids"), **self.environment}
        return subprocess.Popen(
            ["bash", str(self.root / "deploy/run.sh"), "--port", str(self.port), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_listen_to_ctrl_c,
            cwd=folder,
            env={key: value for key, value in given.items() if key not in self.without},
        )

    def run(self, *flags: str, folder: Path | None = None) -> tuple[int, str]:
        """Exit status and output of a run that ends by itself."""
        process = self.start(*flags, folder=folder)
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    @property
    def calls(self) -> str:
        """What was asked of `.venv/bin/python`, one line a call."""
        notes = self.root / "notes"
        return notes.read_text(encoding="utf-8") if notes.exists() else ""

    @property
    def python_paths(self) -> set[str]:
        """PYTHONPATH of each call of `.venv/bin/python`; "unset" where there was none."""
        return set((self.root / "notes.pythonpath").read_text(encoding="utf-8").splitlines())

    @property
    def server_pids(self) -> list[int]:
        """Every process that fake servers have started so far, themselves included."""
        pids = self.root / "pids"
        return [int(word) for word in pids.read_text().split()] if pids.exists() else []

    def no_server_left(self) -> bool:
        """True when all of them are gone."""
        return not any(alive(pid) for pid in self.server_pids)
