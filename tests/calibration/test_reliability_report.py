"""`ddtree reliability`: which rounds of a trace count, and what is drawn of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from ddtree_sglang.calibration.recorded import depths_of, trees_of
from ddtree_sglang.calibration.reliability_report import charts, reliability_of
from ddtree_sglang.cli import main
from ddtree_sglang.viewer.rounds import parse_round
from ddtree_sglang.viewer.trace_file import Trace
from tests.viewer.cases import SAMPLE, a_round, write


def test_a_part_is_an_array_with_padding_where_it_is_short() -> None:
    parts = parse_round(json.dumps(a_round())).parts
    other = a_round(parents=[[-1, 0, -1]], token_ids=[[1, 2, 0]], path_probs=[[1.0, 0.5, 0.0]], node_limits=[2])
    short = parse_round(json.dumps({**other, "accept_index": [[0, -1]], "num_nodes": 3})).parts
    trees, paths, counted = trees_of([*parts, *short])
    assert trees.parents.tolist() == [[-1, 0, 1, 0, 1, 2], [-1, 0, -1, -1, -1, -1]]
    assert trees.depths.tolist() == [[0, 1, 2, 1, 2, 3], [0, 1, 0, 0, 0, 0]]
    assert np.exp(trees.logprobs).round(4).tolist() == [[1.0, 0.6, 0.5, 0.3, 0.1, 0.05], [1.0, 0.5, 0, 0, 0, 0]]
    assert paths.tolist() == [[0, 1, 4], [0, -1, -1]]
    assert counted.tolist() == [[True] * 6, [True] * 2 + [False] * 4]


def test_depths_follow_parents() -> None:
    assert depths_of([-1, 0, 1, 0, 2]) == [0, 1, 2, 1, 3]


def test_the_round_that_may_have_ended_a_request_is_left_out(tmp_path: Path) -> None:
    """Three rounds of one request and the first of another, which is its last."""
    lines = [a_round(0, 2), *(a_round(number) for number in (1, 2))]
    trace = Trace(write(tmp_path / "trace.jsonl", lines))
    found = reliability_of(trace, trace.runs[-1])
    # Path 0, 1, 4: nodes 1 and 3 below the root, 2 and 4 below node 1; none below 4. Twice.
    assert found.num_trials == 2 * 4
    assert found.by_depth(True)[1].accepted == pytest.approx(0.5)
    assert [one.num_nodes for one in found.tokens_by_width()] == [2, 3, 5, 7]


def test_a_trace_without_a_round_that_counts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "trace.jsonl", [a_round(0)])
    assert main(["reliability", str(path)]) == 1
    assert "must hold trees of requests that go on" in capsys.readouterr().err
    assert main(["reliability", str(tmp_path / "none")]) == 1


def test_the_recorded_trace_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, drawing = tmp_path / "page.html", tmp_path / "picture.svg"
    assert main(["reliability", str(SAMPLE), "--html", str(html), "--svg", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert "459 drafted nodes judged" in shown
    assert ["1", "248", "0.183", "0.183", "0.185"] in [line.split() for line in shown.splitlines()]
    assert html.read_text().count("<svg") == len(ElementTree.fromstring(drawing.read_text()).findall("*/*[@role]")) == 5


def test_a_diagram_has_a_dot_for_each_bin_and_its_size_is_the_number_of_trials() -> None:
    trace = Trace(SAMPLE)
    found = reliability_of(trace, trace.runs[-1])
    (before, after), bins = charts(found)[0].lines, found.by_said(True)
    assert len(before.points) == len(bins)
    assert max(before.sizes) == 9.0
    assert before.points[0] == (pytest.approx(bins[0.01].said), pytest.approx(bins[0.01].accepted))
    assert after.label == "corrected"
