"""Stage times out of a trace file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.stage_times import TraceReader, summarise


def line(batch_size: int, **stages_ms: float) -> dict[str, float]:
    total = sum(stages_ms.values())
    return {"round": 0, "batch_size": batch_size, "total_ms": total} | {f"{k}_ms": v for k, v in stages_ms.items()}


def append(path: Path, *records: dict[str, float]) -> None:
    with path.open("a") as handle:
        handle.writelines(json.dumps(record) + "\n" for record in records)


def test_only_rounds_after_the_mark_count(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    reader = TraceReader(path)
    assert reader.since_mark() == []
    append(path, line(1, draft=1.0))
    reader.mark()
    append(path, line(1, draft=2.0), line(1, draft=3.0))
    assert [one["draft_ms"] for one in reader.since_mark()] == [2.0, 3.0]


def test_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"batch_size": 1, "draft_ms": 2.0}\n{"batch_size": 1, "dra')
    assert len(TraceReader(path).since_mark()) == 1


def test_summary_takes_one_batch_size_and_splits_forwards_from_tree_work() -> None:
    rounds = [
        line(8, draft=10, verify=25, context=5, build=1, accept=1, commit=1),
        line(1, draft=500, verify=500, context=500, build=500, accept=500, commit=500),
        line(8, draft=12, verify=31, context=7, build=3, accept=1, commit=3),
    ]
    summary = summarise(rounds, batch_size=8)
    assert summary is not None
    assert summary.num_rounds == 2
    assert summary.stage_ms == {"draft": 11, "verify": 28, "context": 6, "build": 2, "accept": 1, "commit": 2}
    assert summary.round_ms == pytest.approx((43 + 57) / 2)
    assert summary.tree_share == pytest.approx(10 / 100)


def test_what_a_policy_expected_is_no_stage() -> None:
    summary = summarise([{**line(1, draft=4, verify=6), "expected_ms": 90.0}], batch_size=1)
    assert summary is not None
    assert (summary.round_ms, summary.stage_ms) == (10, {"draft": 4, "verify": 6})


def test_no_round_of_that_batch_size_gives_none() -> None:
    assert summarise([line(1, draft=1, verify=1)], batch_size=8) is None
