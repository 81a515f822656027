"""The trace: nothing when off, one true line per round when on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core.built_tree import root_trees
from ddtree_sglang.engine.debug import trace as trace_module
from ddtree_sglang.engine.debug.bounded_file import previous
from ddtree_sglang.engine.debug.trace import STAGES, RoundTrace, facts_of_trees, server_facts


def unread() -> dict[str, Any]:
    """Facts of a round that is not written."""
    raise AssertionError("a round that is not written reads nothing back")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_trace_off_writes_nothing_and_keeps_no_times() -> None:
    trace = RoundTrace(None, "cpu")
    with trace.stage("draft"):
        pass
    trace.end_round(unread)
    assert not trace.enabled
    assert trace._times_ms == {}


def test_trace_line_has_each_stage_and_reads_tensors_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(trace_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    path = tmp_path / "trace.jsonl"
    trace = RoundTrace(str(path), "cpu")
    for _ in range(2):
        with trace.stage("verify"):
            now[0] += 0.02
        facts = {"commit_lens": torch.tensor([3]), "path_probs": torch.tensor([[1.0, 1 / 3, 0.0]])}
        trace.end_round(lambda facts=facts: facts)  # type: ignore[misc]
    first, second = lines_of(path)
    assert [first["round"], second["round"]] == [0, 1]
    assert first["commit_lens"] == [3]
    assert first["path_probs"] == [[1.0, 0.333333, 0.0]]
    assert first["verify_ms"] == 20
    assert first["total_ms"] == first["verify_ms"]
    assert [first["ended_s"], second["ended_s"]] == [5.02, 5.04]
    assert {f"{stage}_ms" for stage in STAGES} <= set(first)
    # Times do not leak from one round to the next.
    assert second["verify_ms"] == 20


def test_facts_of_trees_are_named_where_a_line_is_described() -> None:
    accepted: Any = SimpleNamespace(
        commit_lens=torch.tensor([1]), accept_index=torch.tensor([[0]]), token_ids=torch.tensor([[9]])
    )
    facts = facts_of_trees(root_trees(torch.tensor([7]), torch.tensor([3])), accepted)
    assert [name for name in facts if f"`{name}`" not in (RoundTrace.__doc__ or "")] == []
    assert (facts["token_ids"].tolist(), facts["parents"].tolist(), facts["depths"].tolist()) == ([[7]], [[-1]], [[0]])
    assert (facts["num_nodes"], facts["path_probs"].tolist(), facts["emitted_ids"].tolist()) == (1, [[1.0]], [[9]])


def test_only_every_kth_round_is_timed_and_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace = RoundTrace(str(path), "cpu", every=3)
    for number in range(7):
        with trace.stage("verify"):
            pass
        assert bool(trace._times_ms) == (number % 3 == 0)
        trace.end_round(dict if number % 3 == 0 else unread)
    assert [line["round"] for line in lines_of(path)] == [0, 3, 6]


def test_first_line_of_a_file_names_the_server(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    args = SimpleNamespace(model_path="target", tokenizer_path="words", speculative_num_draft_tokens=9, dtype="float32")
    for _ in range(2):
        trace = RoundTrace.of(DDTreeConfig(policy="fixed", trace=str(path), trace_every=1), args, "cpu", rank=0)
        trace.end_round(dict)
        trace.end_round(dict)
    # A second server appends to the first one's file.
    assert ["server" in line for line in lines_of(path)] == [True, False, True, False]
    server = lines_of(path)[0]["server"]
    assert (server["model"], server["tokenizer_path"], server["num_nodes"]) == ("target", "words", 9)
    assert (server["policy"], server["trace_every"]) == ("fixed", 1)
    assert set(server) == {*server_facts(DDTreeConfig(), args), "trace_every"}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    args = SimpleNamespace(model_path="target", speculative_num_draft_tokens=9)
    RoundTrace.of(DDTreeConfig(trace=str(tmp_path / "t.jsonl")), args, "cpu", rank=1).end_round(unread)
    assert list(tmp_path.iterdir()) == []


def test_two_files_never_take_more_than_the_limit_and_hold_the_newest_rounds(tmp_path: Path) -> None:
    path, limit = tmp_path / "trace.jsonl", 8000
    trace = RoundTrace(str(path), "cpu", {"model": "m"}, max_bytes=limit)
    for number in range(100):
        trace.end_round(lambda number=number: {"filler": "x" * number})  # type: ignore[misc]
        assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= limit
    kept = [*lines_of(previous(path)), *lines_of(path)]
    assert [line["round"] for line in kept] == list(range(100))[-len(kept) :]
    assert previous(path).stat().st_size > limit / 4, "room is used, not thrown away"
    # A reader of one of the two files knows whose it is.
    assert [lines_of(one)[0]["server"]["model"] for one in (previous(path), path)] == ["m", "m"]


def test_a_disk_that_takes_no_more_ends_the_trace_and_not_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = RoundTrace(str(tmp_path / "trace.jsonl"), "cpu")

    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace._file, "write", full)
    for facts in (dict, unread):
        trace.end_round(facts)
    assert [record.message for record in caplog.records] == [
        "DDTREE: the trace ends here, its file cannot be written: [Errno 28] No space left on device"
    ]
