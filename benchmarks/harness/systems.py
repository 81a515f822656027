"""The servers of a benchmark: several systems side by side, same flags, one measured at a time.

Process handling and command lines are those of `deploy/local/server_process.py`. A run has all servers up together
so that they can be measured in turns; an idle one sleeps (`--sleep-on-idle`), and `others_cpu_s` proves it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import REPO
from deploy.local.pair import has_gpu
from deploy.local.server_process import (
    LAUNCH_SERVER,
    START_TIMEOUT_S,
    ServerError,
    ServerProcess,
    ServerSpec,
    free_port,
    log_tail,
)
from workers.progress import say, step

# Two runs at once must not write into each other's logs and traces.
LOG_FOLDER = REPO / f".cache/benchmarks/{os.getpid()}"
LINES_ON_FAILURE = 40
# The three processes of a server of the embedded model with a small KV pool take 3.7 GB. With less than the rest left
# over, the CPU platform would not pack its weights (cpu_platform/dense_linear.py): the last server would be slower.
MEMORY_PER_SERVER_BYTES = 5 * 10**9
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class System:
    """What is compared: `plain`, `dflash`, or `ddtree-<budget>`; `flags` are those that it alone has.

    `policy`: how its budget is chosen, None for no tree, or for the server's default. `environment`: variables of its
    server alone, names and values.
    `asks`: it has no server of its own; its requests ask the one that adapts for so many drafted nodes. `draft`: its
    drafter, None for the run's.
    """

    name: str
    algorithm: str | None
    budget: int | None = None
    policy: str | None = None
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    asks: int | None = None
    draft: str | None = None

    @classmethod
    def of_budget(cls, budget: int, draft: str | None = None) -> System:
        """A tree of so many drafted nodes in every round; `draft`: by another drafter than the run's."""
        name = f"ddtree-{budget}" if draft is None else f"ddtree-{budget}-other"
        return cls(name, "DDTREE", budget, "fixed", draft=draft)

    @property
    def custom_params(self) -> dict[str, Any] | None:
        """Of its requests, of which their time alone is learned; None for what every request gets."""
        return None if self.asks is None else {"ddtree": {"budget": self.asks, "adapt": False, "learn": False}}

    @property
    def adapts(self) -> bool:
        """True when its server chooses the nodes of each round by measured costs."""
        return self.policy == "adaptive"

    @property
    def traced(self) -> bool:
        """True when the server can write stage times."""
        return self.algorithm == "DDTREE"


@dataclass(frozen=True)
class Common:
    """What every server of a run gets alike; `max_total_tokens` bounds the KV pool, so that all fit.

    `logs` is the folder of their logs and traces, None for `LOG_FOLDER`; `module` is what Python runs as the server.
    """

    model: str
    draft: str
    dtype: str
    max_total_tokens: int
    max_running_requests: int
    extra: tuple[str, ...] = ()
    logs: Path | None = None
    start_timeout_s: float = START_TIMEOUT_S
    module: str = LAUNCH_SERVER

    @classmethod
    def from_args(cls, args: argparse.Namespace, max_running_requests: int, *extra: str) -> Common:
        """What the flags of `add_common_flags` say, once `args` names the prepared pair; `extra` comes last."""
        return cls(
            args.model,
            args.draft,
            args.dtype,
            args.max_total_tokens,
            max_running_requests,
            (*args.server_flag, *extra),
            args.server_logs,
            args.start_timeout or START_TIMEOUT_S,
        )

    def flags(self) -> tuple[str, ...]:
        """Flags of every server, speculative or not."""
        return (
            *("--max-total-tokens", str(self.max_total_tokens)),
            *("--max-running-requests", str(self.max_running_requests)),
            *self.extra,
        )


@dataclass(frozen=True)
class RunningSystem:
    """A system with its server; `trace_path` is None where there is no trace."""

    system: System
    server: ServerProcess
    trace_path: Path | None

    @property
    def url(self) -> str:
        """Address of the server."""
        return self.server.url


def groups_for(
    budgets: Sequence[int],
    servers_at_once: int,
    adaptive: int | None = None,
    *,
    one_server: bool = False,
    other_draft: str | None = None,
    ngrams: bool = False,
    environment: tuple[str, str] | None = None,
) -> list[list[System]]:
    """Plain decoding, the stock chain and DDTREE at each budget, in groups that can be up together.

    Every group has both baselines, so that each ratio is of servers that took turns. With `adaptive` each also has
    the policy of that name, at most so many drafted nodes; with `one_server`, too, budgets are asked of its server,
    and so is a budget of 0, which is plain decoding there. With `other_draft` each budget has a second tree, of that
    drafter, in the same group; with `ngrams` one that also knows the request's own text, with `environment` one whose
    server has this variable. With `adaptive` these two are the policy's servers, and the budgets have one tree each.

    Raises:
        ServerError: another drafter, `ngrams` or `environment` with `one_server`; not even one budget fits beside the
            others; or there is no server that adapts and has all budgets.
    """
    if one_server and (adaptive is None or max(budgets) > adaptive):
        raise ServerError(
            f"--one-server asks the server that adapts for budgets up to its own, --adaptive {adaptive}, got "
            f"{max(budgets)}; change --budgets or --adaptive."
        )
    twins: list[Callable[[System], System]] = [with_texts] if ngrams else []
    twins += [] if environment is None else [partial(_with_environment, environment)]
    if one_server and (other_draft is not None or twins):
        raise ServerError(
            "--one-server has one kind of tree, got --other-draft, --ngrams or --other-env as well; give one of them."
        )
    baselines = [System("plain", None), System("dflash", "DFLASH")]
    if adaptive is not None:
        adapts = System(f"ddtree-adaptive-{adaptive}", "DDTREE", adaptive, "adaptive")
        baselines += [adapts, *(twin(adapts) for twin in twins)]
        twins = []
    room = servers_at_once - len(baselines)
    if one_server and room >= 0:
        asked = (System(f"ddtree-{budget}", "DDTREE", asks=budget) for budget in sorted({0, *budgets}))
        return [[*baselines, *asked]]
    of_budget = 1 + (other_draft is not None) + len(twins)
    if room < of_budget:
        least = len(baselines) + (0 if one_server else of_budget)
        room_for = f"{least} servers at once, {servers_at_once} fit"
        fewer = "" if adaptive is None or one_server else ", or leave the policy's column out by --adaptive 0"
        raise ServerError(f"a comparison needs {room_for}; free some memory{fewer}.")
    trees = []
    for budget in budgets:
        tree = System.of_budget(budget)
        trees += [tree, *([] if other_draft is None else [System.of_budget(budget, other_draft)])]
        trees += [twin(tree) for twin in twins]
    room -= room % of_budget
    return [[*baselines, *trees[first : first + room]] for first in range(0, len(trees), room)]


def with_texts(tree: System) -> System:
    """The same, which also knows the request's own text."""
    return replace(tree, name=f"{tree.name}-ngrams", flags=("--speculative-ddtree-ngrams",))


def _with_environment(variable: tuple[str, str], tree: System) -> System:
    return replace(tree, name=f"{tree.name}-env", environment=(variable,))


def servers_that_fit() -> int:
    """How many servers of the embedded model the free memory holds."""
    return int(available_bytes() // MEMORY_PER_SERVER_BYTES)


def _process(system: System, common: Common, trace_path: Path | None) -> ServerProcess:
    trace = ("--speculative-ddtree-trace", str(trace_path)) if trace_path else ()
    spec = ServerSpec(
        model=common.model,
        port=free_port(),
        algorithm=system.algorithm,
        draft=(system.draft or common.draft) if system.algorithm else None,
        budget=system.budget,
        policy=system.policy,
        dtype=common.dtype,
        extra=(*common.flags(), *system.flags, *trace),
        module=common.module,
    )
    log = _new_log(common.logs or LOG_FOLDER, system.name)
    environment = {**_paths_of(common), **dict(system.environment)}
    return ServerProcess.from_spec(system.name, spec, sys.executable, log, **environment)


def _paths_of(common: Common) -> dict[str, str]:
    """Where a server finds a module of ours: SGLang's own command needs nothing of this checkout."""
    if common.module == LAUNCH_SERVER:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))}


def _new_log(folder: Path, name: str) -> Path:
    """A log that no earlier server of the folder wrote: what a run started twice has two."""
    names = (f"{name}.log", *(f"{name}-{count}.log" for count in range(2, 10_000)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())


@contextmanager
def running(systems: Sequence[System], common: Common, trace: bool = True) -> Iterator[list[RunningSystem]]:
    """Start all `systems`, yield them ready, stop them whatever happens; a failure shows the end of every log."""
    (common.logs or LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    # Most of a start is single-threaded importing; on a GPU, though, each must see what the last one left free.
    at_once = 1 if has_gpu() else max(1, len(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        started: list[RunningSystem] = []
        try:
            served = [system for system in systems if system.asks is None]
            for first in range(0, len(served), at_once):
                together = [_start(stack, system, common, trace) for system in served[first : first + at_once]]
                started += together
                for one in together:
                    with step(f"starting {one.system.name}", one.server.startup_stage):
                        one.server.wait_ready(common.start_timeout_s)
            adapting = [one for one in started if one.system.adapts]
            asking = [system for system in systems if system.asks is not None]
            yield [*started, *(replace(adapting[0], system=system) for system in asking)]
        except Exception:
            # The output may outlive the machine and its log files.
            for one in started:
                log = one.server.log_path
                say(f"the end of {one.system.name}'s log, {log.name}:\n{log_tail(log, LINES_ON_FAILURE)}")
            raise


def _start(stack: ExitStack, system: System, common: Common, trace: bool) -> RunningSystem:
    check_memory(system)
    folder = common.logs or LOG_FOLDER
    trace_path = folder / f"{system.name}.trace.jsonl" if trace and system.traced else None
    if trace_path:
        trace_path.unlink(missing_ok=True)
    server = stack.enter_context(_process(system, common, trace_path))
    return RunningSystem(system, server, trace_path)


def check_memory(system: System) -> None:
    """Refuse a server that the machine has no room for; swapping would falsify every number."""
    available = available_bytes()
    if available < MEMORY_PER_SERVER_BYTES:
        raise ServerError(
            f"{system.name} needs about {MEMORY_PER_SERVER_BYTES / 1e9:.0f} GB of memory, "
            f"{available / 1e9:.1f} GB are available; compare fewer systems in one run."
        )


def available_bytes() -> int:
    """Memory that new processes can take."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def group_cpu_s(group: int) -> float:
    """Processor seconds that the living processes of a process group have used so far."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / _CLOCK_TICKS_PER_S


def others_cpu_s(systems: Sequence[RunningSystem], measured: RunningSystem) -> float:
    """Processor seconds used so far by all servers but the measured one."""
    return sum(group_cpu_s(pid) for pid in {other.server.pid for other in systems} - {measured.server.pid})
