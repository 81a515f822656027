"""The drafter's learning curve: what is read, what the line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.plot_drafter_curve import fit, main, scored_steps


def curve(path: Path, lengths: dict[int, float]) -> Path:
    records = [{"step": step, "loss": 1.0} for step in lengths]
    names = ("chain", "tree8", "tree32", "tree64")
    records += [{"step": step, "held_out": dict.fromkeys(names, length)} for step, length in lengths.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_line_through_a_straight_curve_says_where_it_leads(tmp_path: Path) -> None:
    # 0.1 per doubling, 1.5 at 800 labels: 2.2 is seven doublings on.
    records = scored_steps(curve(tmp_path / "c.jsonl", {100: 1.5, 200: 1.6, 400: 1.7}), labels_per_step=8)
    assert [record["labels"] for record in records] == [800, 1600, 3200]
    assert fit(records, "chain").per_doubling == pytest.approx(0.1)
    assert fit(records, "chain").labels_for(2.2) == pytest.approx(800 * 2**7)


def test_step_that_was_scored_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = curve(tmp_path / "c.jsonl", {100: 1.5, 200: 1.6})
    path.write_text(path.read_text() + curve(tmp_path / "again.jsonl", {200: 1.9}).read_text())
    assert [record["chain"] for record in scored_steps(path, 1)] == [1.5, 1.9]


def test_line_of_an_earlier_step_is_held_against_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = curve(tmp_path / "c.jsonl", {50: 1.0, 100: 1.5, 200: 1.6, 400: 1.9})
    flags = ["--from-step", "100", "--check-step", "200", "--cooled", "50", "200"]
    assert main([str(path), "--labels-per-step", "896", "--results", str(tmp_path), *flags]) == 0
    out = capsys.readouterr().out
    assert "steps 100 to 200: 1.700 predicted for step 400, 1.900 measured" in out
    assert "chain, steps from 100 on (3): +0.200 per doubling" in out
    assert "chain, cooled-down steps (2): +0.300 per doubling" in out


def test_files_are_written_and_too_short_a_curve_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--labels-per-step", "896", "--results", str(tmp_path)]
    assert main([str(curve(tmp_path / "c.jsonl", {100: 1.5, 200: 1.6})), *flags]) == 0
    assert (tmp_path / "drafter-curve.png").stat().st_size > 1000
    assert "+0.100 per doubling" in capsys.readouterr().out
    assert main([str(curve(tmp_path / "short.jsonl", {100: 1.5})), *flags]) == 2
    assert "two scored steps" in capsys.readouterr().err
