"""A training run that is killed, or whose disk fills, loses nothing that was written and ends as it would have."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_target, tiny_target, write_conversations

from ddtree_sglang.demo import checkpoint
from ddtree_sglang.demo.checkpoint import load_checkpoint
from ddtree_sglang.demo.train_drafter import main

STEPS = 160
FLAGS = (
    *("--target-layers", "0,2", "--start-layers", "2,3", "--block-size", "4", "--mask-token", "mask"),
    *("--rows", "4", "--anchors", "8", "--sampled-vocabulary", "16", "--learning-rate", "3e-3", "--float32"),
    *("--held-out-percent", "30", "--threads", "1", "--optimizer", "adamw"),
    *("--steps", str(STEPS), "--evaluate-every", "1000", "--checkpoint-every", "4"),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags naming a tiny target and its conversations."""
    folder = tmp_path_factory.mktemp("inputs")
    data = write_conversations(folder / "data.npz", tiny_target())
    return ["--target", str(save_tiny_target(folder / "target")), "--data", str(data)]


def _steps_done(work: Path) -> int:
    curve = work / "checkpoints" / "curve.jsonl"
    lines = curve.read_text().splitlines() if curve.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _kill_during(work: Path, inputs: list[str], after_step: int, delay_s: float) -> None:
    """Run the training, and kill it a random moment after it has passed a step."""
    command = [sys.executable, "-m", "ddtree_sglang.demo.train_drafter", "train", *inputs, "--work", str(work), *FLAGS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while _steps_done(work) < after_step:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay_s)
        process.kill()
    assert process.returncode == -9, "the run ended before it could be killed"


@pytest.mark.slow
def test_three_kills_at_random_moments_end_in_the_same_weights(inputs: list[str], tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    moments = random.Random(seed)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main(["train", *inputs, "--work", str(straight), *FLAGS]) == 0
    for after_step in (10, 50, 90):
        _kill_during(killed, inputs, after_step, moments.uniform(0, 0.1))
        saved = load_checkpoint(killed / "checkpoints")
        assert saved is not None
        assert saved["step"] < STEPS
    assert main(["train", *inputs, "--work", str(killed), *FLAGS]) == 0
    expected, found = load_checkpoint(straight / "checkpoints"), load_checkpoint(killed / "checkpoints")
    assert expected is not None
    assert found is not None
    assert found["step"] == STEPS
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=0, atol=0)


def test_full_disk_is_reported_and_earlier_checkpoints_stay(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    assert main(["train", *inputs, "--work", str(tmp_path), *FLAGS]) == 2
    assert "No space left on device" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-0000004.pt", "step-0000004.sha256", "step-0000008.pt", "step-0000008.sha256"]
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert saved["step"] == 8
