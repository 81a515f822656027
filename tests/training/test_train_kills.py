"""A training run that is killed, or whose disk fills, loses nothing that was written and ends as it would have."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.fit import checkpoint
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from tests.training.tiny import read_curve

STEPS = 60
FLAGS = (
    *("--target-layers", "0,2", "--start-layers", "2,3", "--block-size", "4", "--mask-token", "mask"),
    *("--rows", "4", "--anchors", "8", "--sampled-vocabulary", "16", "--learning-rate", "3e-3", "--float32"),
    *("--held-out-percent", "30", "--threads", "1", "--optimizer", "adamw"),
    *("--steps", str(STEPS), "--evaluate-every", "30", "--checkpoint-every", "5"),
)


# The training command in a process that kills itself at a chosen moment, whatever the machine's pace.
KILLED_RUN = """
import os, signal, sys
from ddtree_sglang.training.fit import checkpoint
from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.fit.loop import Trainer
moment, at = sys.argv[1], int(sys.argv[2])
gradient_step, write, evaluate = Trainer._gradient_step, checkpoint._write, Trainer._evaluate_if_due

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed_gradient_step(trainer, step):
    result = gradient_step(trainer, step)
    if moment == "step" and step == at:
        die()
    return result

def killed_write(payload, partial):
    write(payload, partial)
    if moment == "checkpoint" and payload["step"] == at:
        os.truncate(partial, partial.stat().st_size // 2)
        die()

def killed_evaluate(trainer, step, curve):
    if moment == "evaluation" and step == at:
        die()
    evaluate(trainer, step, curve)

checkpoint._write = killed_write
Trainer._gradient_step, Trainer._evaluate_if_due = killed_gradient_step, killed_evaluate
sys.exit(main(sys.argv[3:]))
"""


def _kill(work: Path, inputs: list[str], moment: str, at: int) -> None:
    arguments = [moment, str(at), "train", *inputs, "--work", str(work), *FLAGS]
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, *arguments], stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def _curve(work: Path) -> list[dict[str, Any]]:
    """The curve without what a clock says."""
    clocks = ("seconds", "seconds_left", "labels_per_s")
    return [{name: value for name, value in record.items() if name not in clocks} for record in read_curve(work)]


@pytest.mark.slow
def test_four_kills_end_in_the_same_weights_and_the_same_curve(inputs: list[str], tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main(["train", *inputs, "--work", str(straight), *FLAGS]) == 0
    # Each where something is unfinished: an average, a file, the score of a checkpoint, the score of the last one.
    for moment, at, left in (("step", 13, 10), ("checkpoint", 25, 20), ("evaluation", 30, 30), ("evaluation", 60, 60)):
        _kill(killed, inputs, moment, at)
        saved = load_checkpoint(killed / "checkpoints")
        assert saved is not None
        assert saved["step"] == left
    assert main(["train", *inputs, "--work", str(killed), *FLAGS]) == 0
    expected, found = load_checkpoint(straight / "checkpoints"), load_checkpoint(killed / "checkpoints")
    assert expected is not None
    assert found is not None
    assert found["step"] == STEPS
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=0, atol=0)
    assert _curve(killed) == _curve(straight)


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
    message = capsys.readouterr().err
    assert re.search(r"step-0000015\.pt needs \d+\.\d MB, writing it failed \(No space left on device\)", message)
    assert "free some space and start the same command again" in message
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-0000005.pt", "step-0000005.sha256", "step-0000010.pt", "step-0000010.sha256"]
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert saved["step"] == 10
