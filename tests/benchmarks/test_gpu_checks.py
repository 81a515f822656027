"""The checks of a GPU server can fail: on a wait, on the wrong device, on tokens that differ by more than a tie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_checks
from deploy.local.client import Batch, Generation

INFO = {"device": "cuda", "disable_overlap_schedule": False}
CAPTURED = f"[2026] {gpu_checks.CAPTURE_MARK}. backend=full\n"


class Servers:
    """Made-up servers: what each in turn answers to every prompt, its log, and what it says of itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens: list[tuple[int, ...]] = [(1, 2, 3), (1, 2, 3)]
        self.logs = [CAPTURED, CAPTURED]
        self.info: dict[str, Any] = dict(INFO)
        self.margin = 0.5
        self.started: list[tuple[str, tuple[str, ...]]] = []

    @contextmanager
    def running(self, systems: Sequence[Any], common: Any, trace: bool = True) -> Iterator[list[Any]]:
        log = self.folder / f"{len(self.started)}.log"
        log.write_text(self.logs[len(self.started)] if len(self.started) < len(self.logs) else "")
        self.started.append((systems[0].name, common.extra))
        yield [SimpleNamespace(url="", server=SimpleNamespace(log_path=log))]

    def generate_batch(self, _url: str, prompts: Sequence[Any], *_: Any) -> Batch:
        one = Generation(self.tokens[len(self.started) - 1], 0.1, 0.1, 2, "length")
        return Batch((one,) * len(prompts), 1.0)

    def target_logprobs(self, _url: str, _ids: Any, tokens: Sequence[int]) -> dict[int, float]:
        return {tokens[0]: -1.0, tokens[1]: -1.0 - self.margin}


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    made = Servers(tmp_path)
    monkeypatch.setattr(gpu_checks, "prepare_pair", lambda *_: SimpleNamespace(model="m", draft="d"))
    monkeypatch.setattr(gpu_checks, "encode", lambda *_: {"held-out": [[1, 2], [3, 4]]})
    monkeypatch.setattr(gpu_checks, "server_info", lambda *_: made.info)
    for name in ("running", "generate_batch", "target_logprobs"):
        monkeypatch.setattr(gpu_checks, name, getattr(made, name))
    return made


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = gpu_checks.main([*arguments, "--datasets", "held-out"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_no_sync_passes_on_cuda_with_overlap_and_graphs(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    status, verdict = check(capsys, "no-sync")
    assert status == 0
    assert verdict["rounds"] == 2 * 2 * len(gpu_checks.CONCURRENCY)
    assert servers.started == [("ddtree-16", ("--speculative-ddtree-check-sync",))]


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"disable_overlap_schedule": True}, {"device": None}])
def test_no_sync_fails_where_nothing_is_watched(
    servers: Servers, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    servers.info |= change
    status, verdict = check(capsys, "no-sync")
    assert (status, verdict["passed"]) == (1, False)


def test_no_sync_fails_without_graphs(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    servers.logs = [""]
    assert check(capsys, "no-sync")[0] == 1


@pytest.mark.parametrize(("name", "logs"), [("graph", [CAPTURED, ""]), ("width", [CAPTURED, CAPTURED])])
def test_equal_tokens_pass_without_a_third_server(
    servers: Servers, capsys: pytest.CaptureFixture[str], name: str, logs: list[str]
) -> None:
    servers.logs = logs
    status, verdict = check(capsys, f"{name}-equality")
    assert (status, verdict["compared"], verdict["different"]) == (0, 4, 0)
    assert [system for system, _ in servers.started] == ["ddtree-16", "ddtree-16"]
    assert servers.started[1][1] == gpu_checks.EQUAL_WITH[f"{name}-equality"]


@pytest.mark.parametrize(("margin", "flags", "passes"), [(5e-5, [], True), (2e-4, [], False)])
def test_a_difference_counts_unless_the_target_is_undecided(
    servers: Servers, capsys: pytest.CaptureFixture[str], margin: float, flags: list[str], passes: bool
) -> None:
    servers.tokens = [(1, 2, 3), (1, 2, 4)]
    servers.margin = margin
    status, verdict = check(capsys, "width-equality", *flags)
    assert status == (0 if passes else 1)
    assert (verdict["near_ties"], verdict["different"]) == ((4, 0) if passes else (0, 4))
    assert servers.started[2][0] == "plain"


def test_a_wider_tie_is_for_half_precision_and_an_answer_that_ends_earlier_is_never_one(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.tokens, servers.margin = [(1, 2, 3), (1, 2, 4)], 0.2
    assert check(capsys, "width-equality", "--near-tie", "0.25")[0] == 0
    servers.started, servers.tokens = [], [(1, 2, 3), (1, 2)]
    assert check(capsys, "width-equality", "--near-tie", "0.25")[0] == 1


@pytest.mark.parametrize("logs", [[CAPTURED, CAPTURED], ["", ""]])
def test_graph_equality_fails_when_both_or_neither_had_graphs(
    servers: Servers, capsys: pytest.CaptureFixture[str], logs: list[str]
) -> None:
    servers.logs = logs
    status, verdict = check(capsys, "graph-equality")
    assert (status, verdict["different"]) == (1, 0)


def test_a_dead_server_is_told_in_full(
    servers: Servers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Batch:
        raise RuntimeError("x" * 1000)

    monkeypatch.setattr(gpu_checks, "generate_batch", broken)
    status, verdict = check(capsys, "no-sync")
    assert (status, verdict["passed"], len(verdict["error"])) == (1, False, 1000)
