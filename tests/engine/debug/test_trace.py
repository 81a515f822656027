"""The trace: nothing when off, one true line per round when on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.built_tree import root_trees
from ddtree_sglang.engine.debug import trace as trace_module
from ddtree_sglang.engine.debug.trace import STAGES, RoundTrace, facts_of_trees


def test_trace_off_writes_nothing_and_keeps_no_times() -> None:
    trace = RoundTrace(None, "cpu")
    with trace.stage("draft"):
        pass
    trace.end_round(batch_size=1)
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
        trace.end_round(batch_size=1, commit_lens=torch.tensor([3]), path_probs=torch.tensor([[1.0, 1 / 3, 0.0]]))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
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
