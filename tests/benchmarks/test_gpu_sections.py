"""Sections: files they name are there, commands get flags that they take, what is missing is a SKIP with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode, gpu_kernels, gpu_proof, gpu_sections, gpu_speed
from benchmarks.harness.gpu_lab import Lab
from benchmarks.harness.gpu_machine import Machine
from benchmarks.harness.gpu_setting import SMALL, Setting
from benchmarks.harness.systems import groups_for

REPO = Path(__file__).resolve().parents[2]
H100 = Machine("cuda", "NVIDIA H100", 79.6, 1, 9)
CPU = Machine("cpu", "2 CPU cores", 23.0)
STEPS = {step.name: step for section in gpu_sections.SECTIONS for step in section.steps}


class Calls:
    """A lab whose commands are noted; `status` is what they end with."""

    def __init__(self, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = {name: (f"/{name}/target", f"/{name}/draft") for name in ("tiny", "real", "shape")}
        self.made: list[tuple[tuple[str, ...], dict[str, str]]] = []
        self.status = 0
        self.missing = ""
        self.lab = Lab(Setting(folder, machine, "run", pairs, scale=SMALL), folder / "proof.tar.gz", {})
        monkeypatch.setattr(self.lab, "python", self.python)
        monkeypatch.setattr(self.lab, "why_not", lambda _code: self.missing)

    def python(self, *arguments: str, **environment: str) -> int:
        self.made.append((arguments, environment))
        return self.status


def test_tests_of_the_kernels_section_are_there() -> None:
    assert all((REPO / path).exists() for path in gpu_sections.TESTS)


@pytest.mark.parametrize("machine", [H100, CPU])
@pytest.mark.parametrize("name", ["speed/real-16", "speed/shape-64"])
def test_decode_takes_the_flags_that_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, name: str
) -> None:
    calls = Calls(tmp_path, machine, monkeypatch)
    step = STEPS[name]
    assert step.run is not None
    assert not step.run(calls.lab).passed, "a run that wrote no line proves nothing"
    ((arguments, _),) = calls.made
    assert arguments[:3] == ("-m", "benchmarks", "decode")
    args = decode.parse_args(arguments[3:])
    pair, budget = name.removeprefix("speed/").split("-")
    assert (args.model, args.budgets, args.servers_at_once) == (f"/{pair}/target", [int(budget)], 3)
    (group,) = groups_for(args.budgets, args.servers_at_once, args.adaptive or None)
    assert [one.name for one in group] == ["plain", "dflash", f"ddtree-{budget}"]
    assert ("--load-format=dummy" in args.server_flag) == (pair == "shape" and machine.kind == "cuda")
    assert ("--mem-fraction-static=0.9" in args.server_flag) == (machine.kind == "cuda")


def test_speed_reports_ratios_and_a_rounds_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path, H100, monkeypatch)
    turns = {"median": 2.0, "min": 1.9, "max": 2.2, "n": 3}
    common = {"up_together": ["plain", "ddtree-16"], "dataset": "held-out", "batch_size": 1, "accept_length": None}
    plain = {"system": "plain", "decode_tokens_per_s": {"median": 100.0}, "ms_per_round": None}
    tree = {"system": "ddtree-16", "decode_tokens_per_s": {"median": 200.0}, "ms_per_round": {"median": 15.0}}
    lines = [common | plain, common | tree | {"ratios_of_turns": {"plain": turns, "chain": turns}}]

    def measured(*_arguments: str, **_environment: str) -> int:
        (tmp_path / "speed-shape-16.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0

    monkeypatch.setattr(calls.lab, "python", measured)
    found = gpu_speed.pair_speed(calls.lab, "shape", 16)
    assert found.passed
    assert "2.00 (1.90-2.20) x plain, 2.00 (1.90-2.20) x chain" in found.reason
    assert "| ddtree-16 | 1.50 |" in (tmp_path / "speed-shape-16.cost.md").read_text()


@pytest.mark.parametrize("machine", [H100, CPU])
@pytest.mark.parametrize("name", ["kernels/rows", "kernel-times/rows"])
def test_kernel_rows_are_interpreted_where_no_gpu_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, name: str
) -> None:
    calls = Calls(tmp_path, machine, monkeypatch)
    step = STEPS[name]
    assert step.run is not None
    assert step.run(calls.lab).passed
    ((arguments, environment),) = calls.made
    args = gpu_kernels.parse_args(arguments[3:])
    assert args.check_only == (name == "kernels/rows")
    assert args.small == (machine.kind == "cpu")
    assert environment == ({} if machine.kind == "cuda" else {"TRITON_INTERPRET": "1"})
    calls.status = 1
    assert not step.run(calls.lab).passed


def test_kernel_tests_compute_float32_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path, H100, monkeypatch)
    step = STEPS["kernels/tests"]
    assert step.run is not None
    assert step.run(calls.lab).passed
    ((arguments, environment),) = calls.made
    assert set(gpu_sections.TESTS) <= set(arguments)
    assert environment == {"TRITON_F32_DEFAULT": "ieee"}


@pytest.mark.parametrize(
    ("name", "machine", "missing", "told"),
    [
        ("kernels/tests", H100, "ModuleNotFoundError: No module named 'hypothesis'", "kernels/rows checks the same"),
        ("kernels/rows", H100, "ModuleNotFoundError: No module named 'hypothesis'", ""),
        ("works/fa3", H100, "ImportError: no FA3", "import sgl_kernel.flash_attn fails here: ImportError: no FA3"),
        ("works/fa3", replace(H100, compute=8), "", "fa3 is for compute capability 9.x, this is 8.x"),
        ("works/triton", H100, "ImportError", ""),
        ("works/sgl-kernel", CPU, "", "only a GPU has it"),
        ("tp/triton", H100, "", "needs two GPUs, 1 is here"),
        ("tp/triton", CPU, "", ""),
        ("lossless/acceptance-16", H100, "ImportError", "needs two attention backends"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, machine: Machine, missing: str, told: str
) -> None:
    calls = Calls(tmp_path, machine, monkeypatch)
    calls.missing = missing
    found: Any = gpu_proof.why_skipped(calls.lab, STEPS[name])
    assert told in found
    assert bool(found) == bool(told)
