"""Where the sections of `gpu_proof` run: commands with a time limit, records and verdicts that outlast a call.

Standard library only: it must be able to say what a machine lacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any, BinaryIO, Literal

from benchmarks.harness.gpu_setting import Setting
from benchmarks.harness.provenance import REPO
from ddtree_sglang.whole_file import replace_text

KILL_AFTER_S = 20.0
"""Seconds between SIGTERM and SIGKILL for a command that is over the time limit; servers end in them."""
TIMED_OUT = 124  # the status that coreutils' `timeout` gives
STATE = "state.json"


def execute(
    command: list[str], environment: Mapping[str, str], timeout_s: float | None, write: Callable[[bytes], object]
) -> int:
    """Run `command` in the checkout and pass on its output as it comes; its status, 128 + N when signal N ended it.

    A command that runs longer than `timeout_s` is told to end, then killed with its process group: status 124.
    """
    process = subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        _signal_group(process, signal.SIGTERM)

    timers = []
    if timeout_s is not None:
        timers = [Timer(timeout_s, end), Timer(timeout_s + KILL_AFTER_S, _signal_group, (process, signal.SIGKILL))]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        with process.stdout as output:
            while chunk := os.read(output.fileno(), 65536):
                write(chunk)
        status = process.wait()
    except KeyboardInterrupt:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
        raise
    finally:
        for timer in timers:
            timer.cancel()
    return TIMED_OUT if late else status if status >= 0 else 128 - status


def _signal_group(process: subprocess.Popen[bytes], signum: int) -> None:
    """Signal all that the command started: its children may hold its output open after it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def output_of(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a short command in the checkout; a program that is not there has status 127."""
    try:
        return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


@dataclass(frozen=True)
class Verdict:
    """What a step came to. SKIP proves nothing, its reason tells why it was left out. LATER: the next call goes on."""

    step: str
    verdict: Literal["PASS", "FAIL", "SKIP", "LATER"]
    seconds: int
    reason: str = ""
    kept: bool = False

    def __str__(self) -> str:
        kept = " (an earlier call)" if self.kept else ""
        return f"{self.verdict} {self.step} {self.seconds} s{kept}{self.reason and ': ' + self.reason}"


class CutOffError(Exception):
    """The time is up; what was measured is kept, and the next call goes on."""


@dataclass
class Lab:
    """One run: its setting, limits in seconds (0: no limit), the state that outlasts it, verdicts so far.

    `pair_of` says for each case which pair it serves.
    """

    setting: Setting
    tar: Path
    pair_of: Mapping[str, str]
    time_limit_s: int = 0
    at_once: int = 1
    speed_backend: str = "triton"
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    verdicts: list[Verdict] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    log: BinaryIO | None = None
    _lacking: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder of results."""
        return self.setting.out

    def left_s(self) -> float:
        """Seconds until the time limit, at least one; infinite without a limit."""
        if not self.time_limit_s:
            return float("inf")
        return max(1.0, self.time_limit_s - (time.monotonic() - self.started))

    def write(self, output: bytes) -> None:
        """Show `output` and keep it in the log of the section that runs."""
        print(output.decode(errors="replace"), end="", flush=True)
        if self.log is not None:
            self.log.write(output)
            self.log.flush()

    def say(self, text: str) -> None:
        """Show one line, and keep it in the log of the section that runs."""
        self.write(f"{text}\n".encode())

    def python(self, *arguments: str, **environment: str) -> int:
        """Run Python with `arguments` and further variables; its status. CutOffError when the time is up first."""
        limit = self.left_s() if self.time_limit_s else None
        command = [sys.executable, "-P", *arguments]
        status = execute(command, {**self.environment, **environment}, limit, self.write)
        if status == TIMED_OUT:
            raise CutOffError(f"ended at the time limit of {self.time_limit_s} s")
        return status

    def why_not(self, code: str) -> str:
        """The last line of what Python says to `code`, such as an import; empty when it runs."""
        ended = output_of([sys.executable, "-c", code], self.environment)
        return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no message"])[-1]

    def lacks(self, backend: str) -> str:
        """Why an attention backend cannot run here, asked once; empty when it can."""
        if backend not in self._lacking:
            self._lacking[backend] = self.setting.machine.lacks(backend, self.why_not)
        return self._lacking[backend]

    def record(self, cases: Sequence[str], at_once: int) -> None:
        """Have the servers of `cases` recorded, `at_once` of them together, but those that were recorded before.

        Raises:
            CutOffError: the time is up; cases that had answered by then are recorded.
        """
        missing = [name for name in cases if self.record_of(name) is None]
        if missing:
            where = ("--out", str(self.out), "--at-once", str(at_once))
            self.python("-m", "benchmarks", "gpu_record", *missing, *where)

    def record_of(self, case: str) -> dict[str, Any] | None:
        """The record of a case: of this code, machine, pair and scale; one of a server that failed only of this run."""
        path = self.setting.record_path(case)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_current = found.get("identity") == self.setting.identity_of(self.pair_of[case])
        return found if is_current and (not found["error"] or found["run"] == self.setting.run) else None

    def earlier(self, step: str, identity: str) -> Verdict | None:
        """The PASS of an earlier call for the same code, machine and pair."""
        entry = self._state().get(step)
        if entry is None or entry["verdict"] != "PASS" or entry["identity"] != identity:
            return None
        return Verdict(step, "PASS", entry["seconds"], entry["reason"], kept=True)

    def conclude(self, verdict: Verdict, identity: str = "") -> None:
        """Show a verdict, and add it to verdicts.txt, to summary.jsonl with its origin, and to the state."""
        self.verdicts.append(verdict)
        print(verdict, flush=True)
        if verdict.kept:
            return
        line = asdict(verdict) | {"identity": identity, "provenance": self.setting.provenance}
        for name, text in (("verdicts.txt", str(verdict)), ("summary.jsonl", json.dumps(line))):
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        replace_text(self.out / STATE, json.dumps(self._state() | {verdict.step: line}, indent=1) + "\n")

    def _state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.out / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def forget(self, steps: Sequence[str], cases: Sequence[str]) -> None:
        """Drop earlier verdicts and records, so that they are made anew."""
        kept = {name: entry for name, entry in self._state().items() if name not in steps}
        replace_text(self.out / STATE, json.dumps(kept, indent=1) + "\n")
        for case in cases:
            self.setting.record_path(case).unlink(missing_ok=True)

    def pack(self) -> None:
        """Put all of `out` but model weights into the one archive, anew: little may come back from a lent machine."""
        partial = self.tar.with_name(self.tar.name + ".partial")
        try:
            with tarfile.open(partial, "w:gz") as archive:
                archive.add(self.out, ".", filter=_packed)
        except OSError as error:  # a file that went or shrank meanwhile, or a full disk: the last archive stays
            print(f"gpu_proof: {self.tar.name} was not renewed: {error}", file=sys.stderr)
        else:
            partial.replace(self.tar)


def _packed(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if ".tar.gz" in one.name or "/pairs/" in f"{one.name}/" else one


def unpack(archive: Path, out: Path) -> None:
    """Take up the results of an earlier call: what is in `out` already stays."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        new = [one for one in packed.getmembers() if not (out / one.name).exists() or one.isdir()]
        packed.extractall(out, members=new, filter="data")
