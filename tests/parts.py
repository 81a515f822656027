"""The parts of a test run: started one after the other, quick failures first, with a table of their times at the end.

`tests/run.sh` sets up the environment and starts this. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTEST = (sys.executable, "-m", "pytest")
# Two processes for two cores. A file stays in one process: some share servers or folders among their tests.
IN_TWO_PROCESSES = ("-n", "2", "--dist", "loadfile", "--durations=10")
FAST_FOLDERS = ("tests/core", "tests/engine", "tests/workers")


@dataclass(frozen=True)
class Part:
    """One command of the run; `environment` is added to this process's own."""

    title: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a part ended, the seconds that it took, and how many of the machine's cores were busy meanwhile."""

    title: str
    seconds: float
    cores: float
    status: int


CHECKS = (
    Part("ruff check", (str(BIN / "ruff"), "check", ".")),
    Part("ruff format", (str(BIN / "ruff"), "format", "--check", ".")),
    Part("mypy", (str(BIN / "mypy"),)),
    Part("mypy deploy, benchmarks", (str(BIN / "mypy"), "deploy", "benchmarks")),
)
FAST = (
    *CHECKS,
    Part(
        "core, engine, workers", (*PYTEST, *IN_TWO_PROCESSES, "-m", "not slow and not e2e and not gpu", *FAST_FOLDERS)
    ),
)
OWN_PARTS = ("tests/e2e", "tests/e2e_ray", "tests/kernels", "tests/device_lane")
UNITS = (*PYTEST, *IN_TWO_PROCESSES, *(f"--ignore={folder}" for folder in OWN_PARTS))
# Triton chooses its interpreter when it is imported, so these run in processes of their own. An interpreter has one
# thread, and one thread each is enough for the lane's sizes.
INTERPRETED = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
ANY_TWO = ("-n", "2", "--dist", "worksteal", "--durations=10")
FULL = (
    *CHECKS,
    # Slow ones too: they wait more than they compute, and each part of its own would import everything again.
    Part("unit tests", (*UNITS, "-m", "not e2e and not gpu")),
    Part("interpreted kernels", (*PYTEST, *ANY_TWO, "-m", "not gpu", "tests/kernels"), INTERPRETED),
    # Apart from those: here references stand in for kernels, in modules that those import.
    Part(
        "device lane, no server",
        (*PYTEST, *ANY_TWO, "-m", "not scene and not slow and not gpu", "tests/device_lane"),
        INTERPRETED,
    ),
    # One process: it keeps two servers busy.
    Part(
        "device lane",
        (*PYTEST, "-m", "scene and not slow and not gpu", "--durations=10", "tests/device_lane"),
        INTERPRETED,
    ),
    Part("real servers", (*PYTEST, "-m", "e2e and not gpu", "--durations=10", "tests/e2e", "tests/benchmarks")),
    # A part of its own: what runs before it has freed its memory. Slow: minutes each; bash tests/run.sh tests/e2e_ray
    Part("real actors", (*PYTEST, "-m", "e2e and not gpu and not slow", "--durations=10", "tests/e2e_ray")),
)


def run_part(part: Part) -> Outcome:
    """Run one part, its output on this process's own, and say how it ended.

    A pytest that found no test ends with 5, which is a failure too: an empty part proves nothing.
    """
    print(f"== {part.title}", flush=True)
    started, busy = time.monotonic(), busy_seconds()
    environment = {**os.environ, **part.environment}
    status = subprocess.run(part.command, cwd=REPO, env=environment, check=False).returncode
    seconds = time.monotonic() - started
    outcome = Outcome(part.title, seconds, (busy_seconds() - busy) / seconds, status)
    print(f"== {part.title}: {outcome.seconds:.0f} s, exit status {status}", flush=True)
    return outcome


def busy_seconds() -> float:
    """Processor seconds of everybody on this machine so far: a server's are no child's, as its parent forked it off."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per part with its seconds, the cores that were busy, and its end; and the sum."""
    rows = [
        (one.title, one.seconds, f"{one.cores:.1f} cores", "ok" if one.status == 0 else f"FAILED ({one.status})")
        for one in outcomes
    ]
    rows.append(("all parts", sum(one.seconds for one in outcomes), "", ""))
    width = max(len(title) for title, *_ in rows)
    return "\n".join(
        f"{title:<{width}}  {spent:6.0f} s  {cores:>9}  {end}".rstrip() for title, spent, cores, end in rows
    )


def run(parts: Sequence[Part]) -> int:
    """Run all parts, whatever fails, and print the table; 1 when a part failed, 130 after Ctrl-C."""
    outcomes: list[Outcome] = []
    status = 0
    try:
        for part in parts:
            outcomes.append(run_part(part))
    except KeyboardInterrupt:
        status = 130
    print("== parts and seconds", table(outcomes), sep="\n", flush=True)
    return status or int(any(one.status for one in outcomes))


def main(arguments: Sequence[str]) -> int:
    """Everything; `fast`: a part of it; other arguments: pytest with them, in one run instead of parts."""
    # Some tests start the checkers and shellcheck by name.
    os.environ["PATH"] = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    if list(arguments) == ["fast"]:
        return run(FAST)
    if arguments:
        return subprocess.run([*PYTEST, *arguments], cwd=REPO, check=False).returncode
    return run(FULL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
