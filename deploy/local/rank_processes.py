"""The processes of an engine on this machine: its ranks, their replica, their detokenizers, their shared memory."""

from __future__ import annotations

import time

import psutil

from deploy.local.patience import wait_for
from workers.replicas.shared_memory import FOLDER, PREFIXES


def ranks() -> dict[int, psutil.Process]:
    """The processes of rank actors, by process id."""
    found = {}
    for process in psutil.process_iter():
        try:
            if any("RankActor" in word for word in process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    return found


def detokenizers() -> list[psutil.Process]:
    """SGLang's detokenizer processes, one beside each engine."""
    return [process for process in psutil.process_iter(["name"]) if "detokenizer" in (process.info["name"] or "")]


def shared_files() -> set[str]:
    """Names of the files that engines have in shared memory."""
    return {path.name for path in FOLDER.iterdir() if path.name.startswith(PREFIXES)}


def wait_until_gone(timeout_s: float) -> None:
    """Return once no rank and no detokenizer is left; AssertionError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while left := [*ranks().values(), *detokenizers()]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.5)


def wait_until_there(num_ranks: int, num_detokenizers: int) -> None:
    """Return once exactly so many are there; a killed process takes a moment to be gone."""
    wait_for(
        lambda: (len(ranks()), len(detokenizers())) == (num_ranks, num_detokenizers),
        f"{num_ranks} ranks and {num_detokenizers} detokenizers",
        60,
    )


def busy_rank(watch_s: float = 0.4) -> psutil.Process:
    """The rank that used most processor time within the next `watch_s` seconds."""
    before = {pid: _cpu_seconds(process) for pid, process in ranks().items()}
    time.sleep(watch_s)
    return max(ranks().values(), key=lambda process: _cpu_seconds(process) - before.get(process.pid, 0.0))


def owner(rank: psutil.Process) -> psutil.Process:
    """The replica that a rank belongs to."""
    return psutil.Process(int(rank.environ()["DDTREE_OWNER_PID"]))


def group(rank: psutil.Process) -> list[psutil.Process]:
    """A replica, its children and all its ranks."""
    replica = owner(rank)
    mine = [one for one in ranks().values() if owner(one).pid == replica.pid]
    return [replica, *replica.children(recursive=True), *mine]


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0
