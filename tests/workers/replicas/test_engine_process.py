"""A replica ends with any of its ranks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers.replicas import engine_process
from workers.replicas.engine_process import EngineProcess

# For what takes milliseconds, on a machine that is busy with other things.
PATIENCE_S = 60


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {"killed": []}
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr("ray.get", lambda refs, timeout=None: refs)
    monkeypatch.setattr("ray.kill", seen["killed"].append)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(engine_process, "_kill_children", lambda: None)
    return seen


def rank(pid: int, node_id: str = "here") -> Any:
    return SimpleNamespace(ping=SimpleNamespace(remote=lambda: {"pid": pid, "node_id": node_id}))


def watchers() -> set[threading.Thread]:
    """Threads that wait for the end of a rank; those of other tests are among them."""
    return {thread for thread in threading.enumerate() if thread.name == "rank-death-watch"}


def test_death_of_a_rank_ends_the_others_and_this_process(fake_ray: dict[str, Any], sleeper: Any) -> None:
    died, exits, ended = threading.Event(), [], threading.Event()

    def exit_process(status: int) -> None:
        exits.append(status)
        ended.set()

    EngineProcess([rank(sleeper.pid)], died.wait, exit_process=exit_process)
    assert sleeper.poll() is None
    died.set()
    assert ended.wait(PATIENCE_S)
    assert exits == [1]
    assert sleeper.wait(PATIENCE_S) == -9
    assert len(fake_ray["killed"]) == 1


def test_ranks_of_other_nodes_are_left_to_ray(fake_ray: dict[str, Any], sleeper: Any) -> None:
    process = EngineProcess(
        [rank(sleeper.pid, node_id="there")], threading.Event().wait, exit_process=lambda status: None
    )
    process.end_ranks()
    assert sleeper.poll() is None
    assert len(fake_ray["killed"]) == 1


@pytest.mark.parametrize("end", [EngineProcess.retire, lambda process: process.end("no token")])
def test_ending_removes_the_files_that_nothing_else_removes(
    fake_ray: dict[str, Any], sleeper: Any, tmp_path: Path, end: Callable[[EngineProcess], None]
) -> None:
    path = tmp_path / "sglang_loads_x.shm"
    path.touch()
    files = [path, tmp_path / "gone"]
    end(EngineProcess([rank(sleeper.pid)], threading.Event().wait, files, exit_process=lambda status: None))
    assert not path.exists()


def test_replica_that_retires_ends_its_ranks_and_not_itself(fake_ray: dict[str, Any], sleeper: Any) -> None:
    died, exits, others = threading.Event(), [], watchers()
    process = EngineProcess([rank(sleeper.pid)], died.wait, exit_process=exits.append)
    (watcher,) = watchers() - others
    process.retire()
    assert sleeper.wait(PATIENCE_S) == -9
    died.set()
    watcher.join(PATIENCE_S)
    assert not watcher.is_alive()
    process.end("a rank died")
    assert exits == []


def test_replica_ends_once_whoever_notices(fake_ray: dict[str, Any], sleeper: Any) -> None:
    exits: list[int] = []
    process = EngineProcess([rank(sleeper.pid)], threading.Event().wait, exit_process=exits.append)
    process.end("no token within 30 s")
    process.end("a rank died")
    assert exits == [1]
