"""Where the sections of `gpu_proof` run: commands with a time limit and a log, verdicts, one archive of everything.

Standard library only: it must be able to say what a machine lacks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Timer
from typing import BinaryIO, Literal

from benchmarks.harness.provenance import REPO

KILL_AFTER_S = 20.0
"""Seconds between SIGTERM and SIGKILL for a command that is over the time limit; servers end in them."""
TIMED_OUT = 124  # the status that coreutils' `timeout` gives


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
    if process.poll() is None:
        os.killpg(process.pid, signum)


def output_of(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a short command in the checkout; a program that is not there has status 127."""
    try:
        return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


@dataclass(frozen=True)
class Verdict:
    """What a section or a case of it came to. SKIP proves nothing; its reason tells why it was left out."""

    section: str
    verdict: Literal["PASS", "FAIL", "SKIP"]
    seconds: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} {self.section} {self.seconds} s{self.reason and ': ' + self.reason}"


@dataclass
class Lab:
    """The machine for one run: the pair, limits in seconds (0: no limit), the folder of results, verdicts so far.

    `draft` is empty where the drafter that ships is meant, `model` until the embedded target is prepared.
    """

    out: Path
    tar: Path
    model: str = ""
    draft: str = ""
    backend: str = "triton"
    start_timeout_s: int = 150
    client_timeout_s: int = 60
    time_limit_s: int = 0
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    verdicts: list[Verdict] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    log: BinaryIO | None = None

    def left_s(self) -> float:
        """Seconds until the time limit, at least one; only with a limit."""
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
        """Run Python with `arguments` and further variables, at most until the time limit; its status."""
        limit = self.left_s() if self.time_limit_s else None
        return execute([sys.executable, *arguments], {**self.environment, **environment}, limit, self.write)

    def why_not(self, code: str) -> str:
        """The last line of what Python says to `code`, such as an import; empty when it runs."""
        ended = output_of([sys.executable, "-c", code], self.environment)
        return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no message"])[-1]

    def conclude(self, verdict: Verdict) -> None:
        """Show a verdict, and add it to verdicts.txt and summary.jsonl."""
        self.verdicts.append(verdict)
        print(verdict, flush=True)
        for name, line in (("verdicts.txt", str(verdict)), ("summary.jsonl", json.dumps(asdict(verdict)))):
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def pack(self) -> None:
        """Put all of `out` into the one archive, anew: little may come back from a machine that is lent."""
        partial = self.tar.with_name(self.tar.name + ".partial")
        try:
            with tarfile.open(partial, "w:gz") as archive:
                archive.add(self.out, ".", filter=lambda one: None if ".tar.gz" in one.name else one)
        except OSError as error:  # a file that went or shrank meanwhile, or a full disk: the last archive stays
            print(f"gpu_proof: {self.tar.name} was not renewed: {error}", file=sys.stderr)
        else:
            partial.replace(self.tar)
