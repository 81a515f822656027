"""`ddtree simulate` from a recorded trace: with a measured table, with a data sheet, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ddtree_sglang.cli import main
from tests.simulator.test_roofline import CONFIG
from tests.viewer.cases import SAMPLE, write


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    cells = [[size, nodes, 0, 0.02 + 0.001 * size * nodes] for size in (1, 4) for nodes in (1, 4, 8, 9, 17)]
    path.write_text(json.dumps({"cells": cells}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_a_trace_and_a_table_make_predictions(costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing, output = tmp_path / "picture.svg", tmp_path / "lines.jsonl"
    flags = ["--costs", str(costs), "--block", "8", "--requests", "1", "4", "--budgets", "3", "8", "--on-cpu"]
    assert main(["simulate", str(SAMPLE), *flags, "--svg", str(drawing), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["requests", "1", "4"]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(line["system"], line["concurrency"]) for line in lines} == {
        (name, size) for name in ("plain", "chain", "tree 3", "tree 8", "adaptive") for size in (1, 4)
    }
    plain = {line["concurrency"]: line["tokens_per_s"] for line in lines if line["system"] == "plain"}
    assert plain == {1: pytest.approx(1 / 0.021, rel=0.01), 4: pytest.approx(4 / 0.024, rel=0.01)}
    assert "another tree of the same answer stood in" in shown
    assert ElementTree.fromstring(drawing.read_text()) is not None


def test_a_data_sheet_and_configurations_make_predictions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gpu", "h200", "--target", str(config), "--draft", str(config), "--tp", "2", "--requests", "1"]
    assert main(["simulate", str(SAMPLE), *flags, "--budgets", "4"]) == 0
    assert "plain" in capsys.readouterr().out


def test_what_cannot_be_simulated_is_refused(
    costs: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[]")
    empty = write(tmp_path / "trace.jsonl", [])
    for trace, flags, told in (
        (SAMPLE, ["--gpu", "h100"], "--gpu must have --target CONFIG and --draft CONFIG"),
        (SAMPLE, ["--gpu", "h100", "--target", str(config), "--draft", str(config)], "must hold an object"),
        (SAMPLE, ["--costs", str(costs), "--budgets", "17"], "must not be wider than the 17 nodes"),
        (SAMPLE, ["--costs", str(costs), "--requests", "0"], "--requests must be 1 or more, got [0]"),
        (SAMPLE, ["--costs", str(costs), "--block", "1"], "--block must be 2 or more, got 1"),
        (SAMPLE, ["--costs", str(config)], "must hold costs of rounds"),
        (empty, ["--costs", str(costs)], "must hold drafted trees"),
    ):
        assert main(["simulate", str(trace), *flags]) == 1
        assert told in capsys.readouterr().err
