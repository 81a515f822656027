"""Surrogate against acceptance on drafters whose law is known, from trace file to table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import surrogate
from benchmarks.harness.walks import read_walks
from tests.benchmarks.made_up_traces import trace_line, write_trace

LAWS = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.8, 0.1, 0.1]])


def write(path: Path, *drawn: tuple[int, int, int], budget: int = 5) -> Path:
    """A request of these rounds, and a last one that is left out."""
    lines = [trace_line("one", LAWS, budget, tokens) for tokens in (*drawn, (2, 2, 2))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_nodes_of_a_round_are_what_was_said_and_walked(tmp_path: Path) -> None:
    """Five nodes by hand: 0 (.6), 00 (.3) and 1 (.3), 000 (.24) and 01 (.24); the target says 0, 1, 2."""
    walks = read_walks([write(tmp_path / "trace", (0, 1, 2))])
    assert walks.num_rounds == walks.num_requests == 1
    assert walks.places.tolist() == [1, 2, 3, 4, 5]
    assert walks.probs.tolist() == pytest.approx([0.6, 0.3, 0.3, 0.24, 0.24])
    assert walks.depths.tolist() == [1, 1, 2, 2, 3]
    assert walks.conditionals.tolist() == pytest.approx([0.6, 0.3, 0.5, 0.4, 0.8])
    assert walks.on_spine.tolist() == [True, False, True, False, True]
    assert walks.tried.tolist() == [True, True, True, True, False]
    assert walks.accepted.tolist() == [True, False, False, True, False]


def test_a_first_child_off_the_spine_is_off_the_spine(tmp_path: Path) -> None:
    """The sixth node is 010 (.192), the first child of 01, which is none."""
    walks = read_walks([write(tmp_path / "trace", (0, 1, 0), budget=6)])
    assert walks.depths[5] == 3
    assert not walks.on_spine[5]
    assert not walks.under_spine[5]
    assert walks.accepted[5]


def test_smaller_budgets_are_cuts_of_the_traced_tree(tmp_path: Path) -> None:
    record = surrogate.surrogate_record(read_walks([write(tmp_path / "trace", (0, 1, 2), (0, 0, 0), (1, 0, 0))]))
    by_budget = {row["budget"]: row for row in record["by_budget"]}
    assert list(by_budget) == [1, 2, 3, 4, 5]
    assert [by_budget[n]["realised"]["tree"]["value"] for n in (1, 2, 3)] == pytest.approx([2 / 3, 1, 4 / 3])
    assert by_budget[2]["expected"]["tree"]["value"] == pytest.approx(0.9)
    assert by_budget[2]["expected"]["chain"]["value"] == pytest.approx(0.6 + 0.3)
    assert [by_budget[n]["realised"]["chain"]["value"] for n in (1, 2, 3)] == pytest.approx([2 / 3, 1, 4 / 3])
    assert by_budget[5]["realised"]["gain"]["value"] == pytest.approx(2 / 3)
    first = record["by_depth"][0]
    assert first["expected"]["value"] == pytest.approx(0.9)
    assert first["realised"]["value"] == pytest.approx(1.0)
    assert record["expected"]["value"] == pytest.approx(sum([0.6, 0.3, 0.3, 0.24, 0.24]))


def test_an_honest_drafter_is_calibrated_and_a_sharpened_one_is_too_sure(tmp_path: Path) -> None:
    honest = surrogate.surrogate_record(read_walks([write_trace(tmp_path / "honest", 40, 26, 12)]))
    assert honest["num_rounds"] == 40 * 25
    assert abs(honest["expected"]["value"] - honest["realised"]["value"]) < 0.1
    assert honest["pearson"]["low"] > 0.2
    assert all(row["excess"]["low"] < 0.02 and row["excess"]["high"] > -0.02 for row in honest["by_depth"])
    assert all(abs(row["said"]["value"] - row["accepted"]["value"]) < 0.08 for row in honest["by_probability"])
    groups = [row["realised"]["value"] for row in honest["by_expectation"]]
    assert groups[-1] > groups[0]
    assert sum(row["rounds"] for row in honest["by_expectation"]) == 1000
    sharp = surrogate.surrogate_record(read_walks([write_trace(tmp_path / "sharp", 40, 26, 12, sharpness=3.0)]))
    assert all(row["excess"]["low"] > 0.05 for row in sharp["by_depth"][1:])


def test_requests_of_two_files_are_not_mixed_up(tmp_path: Path) -> None:
    files = [write_trace(tmp_path / name, 3, 5, 8, seed=seed) for seed, name in enumerate(("one", "two"))]
    walks = read_walks(files)
    assert walks.num_requests == 6
    assert np.bincount(walks.requests).tolist() == [4] * 6


def test_command_writes_a_line_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, output = write_trace(tmp_path / "trace.jsonl", 4, 12, 8), tmp_path / "out.jsonl"
    assert surrogate.main([str(trace), "--output", str(output)]) == 0
    (line,) = [json.loads(text) for text in output.read_text().splitlines()]
    assert line["kind"] == "surrogate"
    assert line["traces"] == ["trace.jsonl"]
    assert line["provenance"]["git_sha"]
    shown = capsys.readouterr().out
    assert "44 rounds of 4 prompts, at most 8 drafted nodes." in shown
    assert "| nodes | tree, expected | realised | single trajectory, expected |" in shown


def test_a_trace_without_drafts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "plain.jsonl"
    trace.write_text(json.dumps({"batch_size": 1, "total_ms": 1.0}) + "\n")
    assert surrogate.main([str(trace)]) == 1
    assert "got none in plain.jsonl" in capsys.readouterr().err
    assert surrogate.main([str(tmp_path / "nothing")]) == 1
    assert "must be a readable file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "cut",
    [
        {"num_nodes": 4, "node_limits": [6]},
        {"num_nodes": 6, "node_limits": [4]},
        {"num_nodes": 1, "node_limits": [6], "parents": None, "token_ids": None, "path_probs": None},
    ],
    ids=["by a policy", "by its request", "to plain decoding"],
)
def test_trees_that_were_cut_are_refused(
    cut: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their widths were chosen by what the drafter said of them."""
    whole, cut_one = ({**trace_line("one", LAWS, 5, (0, 0, 0)), **one} for one in ({"num_nodes": 6}, cut))
    trace = tmp_path / "trace.jsonl"
    for lines, status in (([whole] * 3, 0), ([whole, cut_one, whole], 1)):
        trace.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        assert surrogate.main([str(trace)]) == status
    assert "of one width, got" in capsys.readouterr().err
    # Who asked for no tree has none of any width.
    asked_for_none = {**cut_one, "num_nodes": 1, "node_limits": [1]}
    trace.write_text("".join(json.dumps(line) + "\n" for line in (whole, asked_for_none, whole)), encoding="utf-8")
    assert surrogate.main([str(trace)]) == 0
