"""A forked server and the processes that it spawns are what its command would start, without the imports."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.patience import wait_for
from deploy.local.server_process import ServerError, ServerProcess, start_command
from tests.preloaded.client import Preloaded
from tests.preloaded.process import NUM_CHILDREN


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    log = tmp_path_factory.mktemp("preloaded") / "log"
    with Preloaded(log, ("tests.preloaded.toy_state",)) as process:
        yield process


def toy(log: Path, *arguments: str) -> ServerProcess:
    command = [sys.executable, "-m", "tests.preloaded.toy_server", *arguments]
    return ServerProcess("toy", command, "http://127.0.0.1:1", log)


def ended_with(process: ServerProcess, status: int) -> bool:
    return process.exit_status() == status


def report(process: ServerProcess) -> dict[str, Any]:
    wait_for(lambda: "server" in process.log_path.read_text() or process.exit_status() is not None, "the report", 60)
    text = process.log_path.read_text()
    assert "server" in text, text
    return json.loads(text.splitlines()[-1])


def test_fork_is_what_the_command_starts_but_for_the_imports(preloaded: Preloaded, tmp_path: Path) -> None:
    seen = {}
    for name, starter in (("forked", preloaded.start), ("command", start_command)):
        process = toy(tmp_path / name, "2", "end")
        process.starter = starter
        with process:
            seen[name] = report(process)
            wait_for(partial(ended_with, process, 3), "the server ends", 60)
    server, children = seen["forked"]["server"], seen["forked"]["children"]
    assert all(one["imported_by"] not in (one["pid"], server["pid"]) for one in (server, *children))
    for name, run in seen.items():
        assert run["server"]["argv"] == ["2", "end"], name
        assert run["server"]["group"] == run["server"]["pid"]
        for child in run["children"]:
            assert child["parent"] == run["server"]["pid"]
            assert child["known_pid"] == child["pid"]
            assert child["group"] == run["server"]["group"]
            assert child["exit_code"] == 7
            assert child["argv"] == ["2", "end"]
            # The server's environment, and nothing else of its state.
            assert child["mark"] == "set by the server"
            assert child["state"] == ["imported"]


def test_more_children_than_were_prepared_are_spawned_as_ever(preloaded: Preloaded, tmp_path: Path) -> None:
    process = toy(tmp_path / "log", str(NUM_CHILDREN + 1), "end")
    process.starter = preloaded.start
    with process:
        children = report(process)["children"]
    assert [child["imported_by"] == child["pid"] for child in children] == [False] * NUM_CHILDREN + [True]
    assert all(child["exit_code"] == 7 and child["state"] == ["imported"] for child in children)


def test_what_a_child_spawns_is_prepared_too_under_dp_attention(preloaded: Preloaded, tmp_path: Path) -> None:
    process = toy(tmp_path / "log", "2", "end", "--enable-dp-attention")
    process.starter = preloaded.start
    with process:
        children = report(process)["children"]
    for one in children:
        (grandchild,) = one["children"]
        assert grandchild["parent"] == one["pid"]
        assert grandchild["imported_by"] not in (grandchild["pid"], one["pid"])
        assert grandchild["exit_code"] == one["exit_code"] == 7
        assert grandchild["state"] == ["imported"]


def test_stop_leaves_nothing_of_a_forked_server(preloaded: Preloaded, tmp_path: Path) -> None:
    process = toy(tmp_path / "log", "1", "stay")
    process.starter = preloaded.start
    with process:
        assert report(process)["server"]["pid"] == process.pid
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) > NUM_CHILDREN - 1
    assert process.exit_status() == -15
    wait_for(lambda: not any(one.is_running() for one in family), "all processes end", 10)


def test_servers_die_with_the_preloaded_process(tmp_path: Path) -> None:
    with Preloaded(tmp_path / "preloaded.log", ("tests.preloaded.toy_state",)) as preloaded:
        process = toy(tmp_path / "log", "0", "stay")
        process.starter = preloaded.start
        process.start()
        report(process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    wait_for(lambda: not any(one.is_running() for one in family), "all processes end", 10)


def test_other_environment_is_refused(preloaded: Preloaded, tmp_path: Path) -> None:
    process = toy(tmp_path / "log", "0", "end")
    process.starter, process.environment = preloaded.start, {"TOY_MARK": "another"}
    with pytest.raises(ValueError, match=r"found other values of \['TOY_MARK'\]: start it by its command"):
        process.start()


def test_what_a_test_run_itself_sets_is_not_another_environment(preloaded: Preloaded, tmp_path: Path) -> None:
    """A test that imports transformers changed it, and no server could be forked in that run any more."""
    process = toy(tmp_path / "log", "0", "end")
    process.starter, process.environment = preloaded.start, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    with process:
        assert report(process)["server"]["argv"] == ["0", "end"]


def test_failed_import_is_told_with_its_output(tmp_path: Path) -> None:
    with Preloaded(tmp_path / "preloaded.log", ("tests.preloaded.no_such_module",)) as preloaded:
        process = toy(tmp_path / "log", "0", "end")
        process.starter = preloaded.start
        with pytest.raises(ServerError, match=r"No module named .*no_such_module"):
            process.start()
