"""The curve of a training run: what a line holds, and the file of lines that a resumed run continues exactly."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.fit.distillation import StepLoss
from ddtree_sglang.whole_file import replace_text


class TrainingCurve:
    """`curve.jsonl`: a JSON object with "step" per line; a line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[dict[str, Any]]:
        """All whole lines."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def append(self, record: dict[str, Any]) -> None:
        """Show a record and keep it."""
        print(json.dumps(record), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop what lies past the step that a run goes on from: it is computed, and written, again."""
        if not self.path.exists():
            return
        kept = [record for record in self.records() if record["step"] <= step]
        replace_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def is_scored(self, step: int) -> bool:
        """True when there is a held-out score of this step."""
        return any(record["step"] == step and "held_out" in record for record in self.records())


class ProgressMeter:
    """Averages since the last line: loss, accuracy by depth, labels per second, time left."""

    def __init__(self, steps: int, step: int, seconds: float) -> None:
        self.steps, self.before = steps, seconds
        self.started = time.monotonic()
        self.first_step = step
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.correct, self.counted = torch.zeros(1), torch.zeros(1)
        self.since = time.monotonic()

    def add(self, result: StepLoss) -> None:
        """Count one step."""
        self.losses.append(float(result.loss.detach()))
        self.correct = self.correct + result.correct.cpu()
        self.counted = self.counted + result.counted.cpu()

    def seconds(self) -> float:
        """Wall time of the run so far, earlier processes included."""
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The unfinished averages, for a checkpoint."""
        elapsed = time.monotonic() - self.since
        return {"losses": self.losses, "correct": self.correct, "counted": self.counted, "elapsed": elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses, self.correct, self.counted = list(state["losses"]), state["correct"], state["counted"]
        self.since = time.monotonic() - state["elapsed"]

    def line(self, step: int, learning_rate: float) -> dict[str, Any]:
        """The record to show; starts a new average."""
        now = time.monotonic()
        accuracy = (self.correct / self.counted.clamp_min(1)).tolist()
        pace = (now - self.started) / max(1, step - self.first_step)
        record = {
            "step": step,
            "loss": round(sum(self.losses) / len(self.losses), 4),
            "accuracy_by_depth": [round(value, 4) for value in accuracy],
            "labels_per_s": round(float(self.counted.sum()) / max(1e-9, now - self.since)),
            "learning_rate": round(learning_rate, 7),
            "seconds": round(self.seconds()),
            "seconds_left": round(pace * (self.steps - step)),
        }
        self._clear()
        return record
