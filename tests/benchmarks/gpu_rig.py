"""A GPU proof without a GPU: the whole program and its real children, over a made-up engine and a made-up card."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_proof
from benchmarks.harness import gpu_lab, gpu_pairs
from benchmarks.harness.gpu_machine import Machine
from benchmarks.harness.gpu_setting import Scale

REPO = Path(__file__).resolve().parents[2]
FAKE_ENGINE = Path(__file__).parent / "fake_engine"
H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 79.6, 1, 9)


@dataclass
class Rig:
    """What stands in for the machine; `main` runs the program, everything it starts is real but the engine."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    machine: Machine = H100
    lacking: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    code: str = "code-1"
    judges: str = "judges-1"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def starts(self) -> Path:
        """A line for each server that was started."""
        return self.folder / "starts"

    def set_up(self) -> None:
        patch = self.monkeypatch.setattr
        patch(gpu_proof, "find_machine", lambda _device: self.machine)
        patch(gpu_proof, "end_on_sigterm", lambda: None)
        patch(gpu_proof, "code_digest", lambda *names: self.judges if names else self.code)
        patch(gpu_proof, "Scale", lambda: Scale(prompts=48, new_tokens=24, samples=240))
        patch(gpu_proof, "child_environment", self.environment)
        patch(gpu_lab.Lab, "lacks", lambda _lab, backend: self.lacking.get(backend, ""))
        patch(gpu_pairs, "_made", self.made)

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join([str(FAKE_ENGINE), str(REPO)]),
            "PYTHONUNBUFFERED": "1",
            "FAKE_FAULTS": json.dumps(self.faults),
            "FAKE_STARTS": str(self.starts),
            "FAKE_DEVICE": self.machine.kind,
        }

    def made(self, _lab: Any, name: str, _program: str, *_flags: str) -> tuple[str, str]:
        """A pair of configs alone: the made-up engine reads no weights."""
        folders = [self.folder / "pairs" / name / part for part in ("target", "draft")]
        for one in folders:
            one.mkdir(parents=True, exist_ok=True)
            (one / "config.json").write_text("{}")
        return str(folders[0]), str(folders[1])

    def main(self, *arguments: str) -> int:
        return gpu_proof.main(["--out", str(self.out), "--at-once", "4", "--start-timeout", "30", *arguments])

    def summary(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "summary.jsonl").read_text().splitlines()]

    def verdicts(self) -> dict[str, str]:
        """Step -> its last verdict."""
        return {line["step"]: line["verdict"] for line in self.summary()}

    def reason(self, step: str) -> str:
        return next(line["reason"] for line in reversed(self.summary()) if line["step"] == step)

    def started(self) -> list[str]:
        """Command lines of the servers so far."""
        return self.starts.read_text().splitlines() if self.starts.exists() else []


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(tmp_path, monkeypatch)
    made.set_up()
    return made
