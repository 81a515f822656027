"""A drafter that was exported goes on being trained: on other text, from where it was, in its own shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.training.tiny import read_curve, tiny_config, tiny_target

FLAGS = ["--rows", "4", "--anchors", "8", "--sampled-vocabulary", "16", "--float32", "--threads", "1"]
PART = ["--held-out-percent", "30"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random drafter of that target, as if trained elsewhere."""
    torch.manual_seed(7)
    return export_drafter(DFlashDrafter(tiny_config(tiny_target())), tmp_path_factory.mktemp("drafter"), torch.float32)


def _train(inputs: list[str], work: Path, *flags: str) -> int:
    return main(["train", *inputs, "--work", str(work), *FLAGS, *PART, *flags])


def _scores(text: str) -> dict[str, float]:
    record = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    return {name: record[name] for name in ("chain", "tree8")}


def test_training_begins_where_the_exported_drafter_is(
    inputs: list[str], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ("--start-draft", str(exported), "--steps", "1", "--learning-rate", "1e-12")
    assert _train(inputs, tmp_path, *still) == 0
    again = tmp_path / "again"
    assert main(["export", "--work", str(tmp_path), "--output", str(again), "--float32"]) == 0
    capsys.readouterr()
    found = []
    for folder in (exported, again):
        score = ["evaluate", *inputs, "--work", str(tmp_path), "--draft", str(folder), "--float32", "--threads", "1"]
        assert main([*score, *PART]) == 0
        found.append(_scores(capsys.readouterr().out))
    assert found[0] == found[1]
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert saved["config"] == tiny_config(tiny_target()).to_hf_config()


def test_it_learns_from_there(inputs: list[str], exported: Path, tmp_path: Path) -> None:
    flags = ("--start-draft", str(exported), "--learning-rate", "3e-3", "--evaluate-every", "1000")
    assert _train(inputs, tmp_path, *flags, "--steps", "40") == 0
    losses = [record["loss"] for record in read_curve(tmp_path) if "loss" in record]
    assert losses[-1] < 0.9 * losses[0]


def test_beside_another_shape_nothing_is_begun(
    inputs: list[str], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(inputs, tmp_path, "--start-draft", str(exported), "--steps", "1", "--start-layers", "3") == 2
    assert "--start-draft brings its own shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask_token": "w3"}, "must have the id 96 in the target's vocabulary, found 3"),
        ({"mask_token": "absent"}, "must have the id 96 in the target's vocabulary, found None"),
        ({"selector_rank": 4, "selector_top_k": 4}, "run the selector stage afterwards"),
        ({"num_target_layers": 5}, "they differ in num_target_layers 5 and 4: pass its own"),
    ],
)
def test_drafters_that_cannot_go_on_are_refused(
    inputs: list[str], tmp_path: Path, changed: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DrafterConfig(**{**vars(tiny_config(tiny_target())), **changed})  # type: ignore[arg-type]
    folder = export_drafter(DFlashDrafter(config), tmp_path / "drafter")
    assert _train(inputs, tmp_path / "work", "--start-draft", str(folder), "--steps", "1") == 2
    assert message in capsys.readouterr().err
