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


def simulated(flags: list[str], capsys: pytest.CaptureFixture[str], trace: Path = SAMPLE) -> str:
    assert main(["simulate", str(trace), *flags]) == 0
    return capsys.readouterr().out


def table(tmp_path: Path, cells: list[list[float]]) -> list[str]:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"cells": cells}))
    return ["--costs", str(path)]


OF_ONE = [[1, 1, 0, 0.022], [1, 5, 0, 0.032], [1, 9, 0, 0.035]]
ASKED = ["--budgets", "4", "8", "--on-cpu", "--requests"]


def test_what_a_table_did_not_measure_is_called_a_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "measured" not in simulated([*table(tmp_path, OF_ONE), *ASKED, "1"], capsys)
    output = tmp_path / "lines.jsonl"
    shown = simulated([*table(tmp_path, OF_ONE), *ASKED, "1", "8", "64", "--output", str(output)], capsys)
    guess = "no round of 8, 64 requests was measured: what is said of them is a guess"
    assert guess in shown.splitlines()
    assert "no plain round" not in shown
    assert {json.loads(line)["guessed"][0] for line in output.read_text().splitlines()} == {guess}
    of_two = [*OF_ONE[1:], [4, 1, 0, 0.03], [4, 9, 0, 0.07], [4, 6, 0, 0.05]]
    shown = simulated([*table(tmp_path, of_two), *ASKED, "1", "4"], capsys)
    assert "no plain round of 1 requests was measured: plain decoding" in shown
    assert "no round of 5 nodes was measured, nor close ones on both sides, with 4 requests" in shown
    far = [[size, nodes, 3, spent] for size, nodes, _, spent in OF_ONE]
    assert "measured in contexts up to 256 tokens" in simulated([*table(tmp_path, far), *ASKED, "1"], capsys)


def test_the_chain_is_as_long_as_the_traces_drafter_drafts(
    costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--costs", str(costs), *ASKED, "1", "--output", str(tmp_path / "lines.jsonl")]

    def nodes_of_chain(*more: str) -> float:
        simulated([*flags, *more], capsys)
        lines = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
        return next(float(line["mean_nodes"]) for line in lines if line["system"] == "chain")

    assert nodes_of_chain() == 8
    assert nodes_of_chain("--block", "16") == 16
    untold = [{**json.loads(line), "accept_index": None} for line in SAMPLE.read_text().splitlines()]
    assert main(["simulate", str(write(tmp_path / "old.jsonl", untold)), *flags]) == 1
    assert "--block must be given where the trace does not tell it" in capsys.readouterr().err


@pytest.mark.parametrize("block", [[], None, {"target_layer_ids": None}, {"target_layer_ids": 3}])
def test_a_drafters_config_that_is_none_is_one_line(
    block: object, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps({**CONFIG, "dflash_config": block}))
    flags = ["--gpu", "h200", "--target", str(config), "--draft", str(draft), "--requests", "1", "--budgets", "4"]
    assert main(["simulate", str(SAMPLE), *flags]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "must have dflash_config as an object whose target_layer_ids is a list, got" in told


def result(system: str, size: int, **more: object) -> str:
    seconds = {"plain": 0.02, "dflash": 0.06}.get(system, 0.031)
    rate, ms = {"median": 1 / seconds}, None if system == "plain" else {"median": 1e3 * seconds}
    line = {"system": system, "batch_size": size, "decode_tokens_per_s": rate, "ms_per_round": ms}
    return json.dumps({**line, "dtype": "float32", **more}) + "\n"


def test_results_of_a_decode_benchmark_are_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text("".join(result(name, 1) for name in ("plain", "dflash", "ddtree-8", "ddtree-4")))
    flags = ["--costs", str(path), *ASKED, "1", "--output", str(tmp_path / "lines.jsonl")]

    def ms_per_round() -> dict[str, float]:
        lines = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
        return {line["system"]: 1e3 * line["accept_length"] / line["tokens_per_s"] for line in lines}

    assert "its chain's rounds were left out" in simulated(flags, capsys)
    assert ms_per_round()["chain"] == pytest.approx(31, rel=0.05), "as trees of about as many nodes"
    shown = simulated([*flags, "--block", "8"], capsys)
    assert "measured" not in shown
    assert "left out" not in shown
    spent = ms_per_round()
    assert (spent["plain"], spent["chain"], spent["tree 8"]) == pytest.approx((20, 60, 31), rel=0.01)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (result("plain", 1) + result("plain", 1, dtype="bfloat16"), "must hold rounds of one dtype"),
        ('{"step": "lossless"}\n', "must hold seconds of rounds by requests and nodes, got 0 result lines"),
        (result("ddtree-8", 1, ms_per_round=None), "must hold result lines of `benchmarks decode`"),
        (result("plain", 1, decode_tokens_per_s={"median": 0}), "must hold result lines of `benchmarks decode`"),
        ("{", "must hold result lines of `benchmarks decode`"),
    ],
)
def test_results_that_hold_no_costs_say_what_they_lack(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text(text)
    assert main(["simulate", str(SAMPLE), "--costs", str(path)]) == 1
    assert told in capsys.readouterr().err
    assert main(["simulate", str(SAMPLE), "--costs", str(tmp_path / "none.jsonl")]) == 1
    assert "must be a readable file" in capsys.readouterr().err
