"""The report of a batch: what ran in it, and what the scheduler did since the one before."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.device_lane import report
from tests.device_lane.device import counts

BATCH = SimpleNamespace(forward_mode=SimpleNamespace(name="DECODE"), reqs=[SimpleNamespace(rid="a")])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only rank's report goes."""
    file = tmp_path / "report.jsonl"
    context = ModuleType("sglang.srt.runtime_context")
    context.get_parallel = lambda: SimpleNamespace(tp_rank=0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    monkeypatch.setattr(report, "_file", lambda _rank: file)
    return file


def test_nothing_that_is_counted_between_two_batches_is_lost(file: Path) -> None:
    def run(_scheduler: Any, _batch: Any) -> str:
        counts.launches["verify"] += 1
        return "result"

    counts.take()
    for _ in range(2):
        counts.launches["reserve"] += 2
        counts.host_reads["tolist, processor.py:1"] += 1
        assert report.report_batch(run, None, BATCH) == "result"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["nodes"] is None
        assert line["rids"] == ["a"]
        assert (line["launches"], line["host_reads"]) == (1, {})
        assert line["between"]["launches"] == {"reserve": 2}
        assert line["between"]["host_reads"] == Counter({"tolist, processor.py:1": 1})


def test_a_rounds_nodes_are_told(file: Path) -> None:
    report.report_batch(lambda *_: SimpleNamespace(num_nodes=8), None, BATCH)
    assert json.loads(file.read_text())["nodes"] == 8
