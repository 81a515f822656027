"""The recipe's benchmark reports a run's own scores, against the run named base. Training itself is replaced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import drafter_recipe as bench_drafter_recipe
from benchmarks.drafter_recipe import main
from ddtree_sglang.training.flags import parse_command

CHAIN = {"base": 1.25, "soft-labels-only": 1.5, "hard-labels-only": 1.0}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a benchmark whose training writes a curve and nothing else."""

    def train(command: Sequence[str], **_: Any) -> None:
        work = Path(command[command.index("--work") + 1])
        (work / "checkpoints").mkdir(exist_ok=True)
        scores = dict.fromkeys(bench_drafter_recipe.COLUMNS, CHAIN[work.name])
        lines = [{"step": 5, "seconds": 3}, {"step": 5, "held_out": scores}]
        (work / "checkpoints" / "curve.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(bench_drafter_recipe.subprocess, "run", train)
    monkeypatch.setattr(bench_drafter_recipe, "collect_provenance", dict)
    for name in ("features", "results"):
        (tmp_path / name).mkdir()
    paths = {"--target": "t", "--data": "d", "--features": "features", "--output": "out", "--results": "results"}
    return [*(part for flag, name in paths.items() for part in (flag, str(tmp_path / name))), "--steps", "5"]


def _records(arguments: list[str]) -> list[dict[str, Any]]:
    results = Path(arguments[arguments.index("--results") + 1])
    return [json.loads(line) for line in (results / "drafter_recipe.jsonl").read_text().splitlines()]


def test_a_folder_with_another_run_is_refused_before_anything_runs(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--only", "soft labels only"]) == 0
    assert main([*arguments, "--only", "base", "soft labels only", "--steps", "6"]) == 2
    message = capsys.readouterr().err
    assert "soft-labels-only holds one of [" in message
    assert "remove that folder or name another --output" in message
    assert [record["run"] for record in _records(arguments)] == ["soft labels only"]


def test_the_same_run_goes_on_and_says_so(arguments: list[str]) -> None:
    for _ in range(2):
        assert main([*arguments, "--only", "base"]) == 0
    assert [record["resumed"] for record in _records(arguments)] == [False, True]


def test_a_folder_that_does_not_say_what_it_holds_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--only", "base"]) == 0
    (Path(arguments[arguments.index("--output") + 1]) / "base" / "flags.json").unlink()
    assert main([*arguments, "--only", "base"]) == 2
    assert "holds one of unknown flags" in capsys.readouterr().err


def test_differences_are_from_the_base_of_the_same_length_wherever_it_ran(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--only", "soft labels only"]) == 0
    assert "| soft labels only | 3 | 1.500 | 1.500 |" in capsys.readouterr().out  # nothing to compare with
    assert main([*arguments, "--only", "base"]) == 0
    assert main([*arguments, "--only", "hard labels only"]) == 0
    assert "| hard labels only | 3 | 1.000 (-0.250) |" in capsys.readouterr().out
    other = [*arguments, "--only", "hard labels only", "--steps", "6", "--output", arguments[7] + "2"]
    assert main(other) == 0
    assert "| hard labels only | 3 | 1.000 | 1.000 |" in capsys.readouterr().out


@pytest.mark.parametrize("variant", bench_drafter_recipe.VARIANTS, ids=lambda variant: variant.name)
def test_the_recipe_understands_the_flags_of_every_run(variant: bench_drafter_recipe.Variant) -> None:
    flags = ["--target", "t", "--data", "d", "--features", "f", "--output", "o", "--steps", "5"]
    args = bench_drafter_recipe._parser().parse_args(flags)
    command = parse_command(["train", "--work", "w", *bench_drafter_recipe.training_flags(variant, args)], "")
    assert command.training.steps == command.training.evaluate_every == 5
    assert command.held_out.limit == bench_drafter_recipe.DEFAULT_LIMIT
