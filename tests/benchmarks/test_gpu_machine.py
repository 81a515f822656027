"""What is chosen from the card that is found: memory shares, servers at once, the size of the model without weights."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_speed import SYSTEMS, ratios
from benchmarks.harness import gpu_pairs
from benchmarks.harness.gpu_lab import Lab
from benchmarks.harness.gpu_machine import GIB, Machine, found_gpu
from benchmarks.harness.gpu_setting import Setting

H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 79.6, 1, 9)
H200 = Machine("cuda", "NVIDIA H200", 140.4, 1, 9)
L4 = Machine("cuda", "NVIDIA L4", 22.5, 1, 8)


def smi(output: str, status: int = 0) -> Machine | None:
    return found_gpu(lambda command, _env: subprocess.CompletedProcess(command, status, output, ""), {})


def test_the_card_is_what_the_driver_says() -> None:
    assert smi("NVIDIA H100 80GB HBM3, 81559, 9.0\n") == Machine("cuda", "NVIDIA H100 80GB HBM3", 81559 / 1024, 1, 9)
    two = smi("NVIDIA L4, 23034, 8.9\nNVIDIA L4, 23034, 8.9\n")
    assert two is not None
    assert (two.gpus, two.compute) == (2, 8)


@pytest.mark.parametrize(
    ("visible", "found"),
    [("1", (1, 8)), ("1,0", (2, 8)), ("0", (1, 9)), ("GPU-5f2c", (1, 9)), ("", None), ("0,1", (2, 9))],
)
def test_what_cuda_does_not_show_to_a_process_is_not_there(visible: str, found: tuple[int, int] | None) -> None:
    """With one of two cards shown, two ranks have no room: nvidia-smi shows both all the same."""
    told = "NVIDIA H100, 81559, 9.0\nNVIDIA L4, 23034, 8.9\n"
    machine = found_gpu(
        lambda command, _env: subprocess.CompletedProcess(command, 0, told, ""), {"CUDA_VISIBLE_DEVICES": visible}
    )
    assert (machine and (machine.gpus, machine.compute)) == found


@pytest.mark.parametrize(("output", "status"), [("", 127), ("No devices were found\n", 0), ("a, 1, 9.0", 9)])
def test_no_card_is_no_machine(output: str, status: int) -> None:
    assert smi(output, status) is None


def profiled_gib(machine: Machine, fraction: float, weights: float, before: float) -> float:
    """What SGLang has for the KV pool (kv_cache_configurator.py): free after the weights, less the share it leaves."""
    free = machine.memory_gib - before
    return free - weights - free * (1 - fraction)


@pytest.mark.parametrize("machine", [H100, H200])
def test_three_servers_of_eight_billion_weights_find_room_for_their_pools(machine: Machine) -> None:
    """15.3 GiB of target, 2 of drafter, 4.5 of KV cache for 32k tokens; graphs and a context take 2 more each."""
    weights, pool, rest = 17.3, 4.5, 2.0
    fraction = machine.mem_fraction(SYSTEMS)
    taken = 0.0
    for _ in range(SYSTEMS):
        assert profiled_gib(machine, fraction, weights, taken) >= pool
        taken += weights + pool + rest
    assert taken < machine.memory_gib


def test_half_of_the_memory_would_not_do_on_80_gb() -> None:
    """The third server finds 32 GiB free, and its weights are more than half of that."""
    assert profiled_gib(H100, 0.5, 17.3, 2 * 23.8) < 0


@pytest.mark.parametrize(("machine", "shape"), [(H100, "qwen3-8b"), (H200, "qwen3-8b"), (L4, "qwen3-0.6b")])
def test_the_shape_is_one_of_which_three_servers_fit(
    machine: Machine, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(gpu_pairs, "_made", lambda _lab, *words: made.append(words) or ("t", "d"))
    lab: Any = type("Lab", (), {"setting": type("Setting", (), {"machine": machine})})
    assert gpu_pairs._shape(lab) == ("t", "d")
    assert made == [("shape", "dummy_pair", "--shape", shape)]


@pytest.mark.parametrize(
    ("machine", "backend", "error", "told"),
    [
        (H100, "fa3", "", ""),
        (H100, "fa3", "ImportError: no FA3", "import sgl_kernel.flash_attn fails here: ImportError: no FA3"),
        (L4, "fa3", "", "fa3 is for compute capability 9.x, this is 8.x"),
        (L4, "flashinfer", "", ""),
        (Machine("cpu", "2 cores", 16.0), "fa3", "ImportError", ""),
    ],
)
def test_a_backend_is_there_or_it_is_said_why_not(machine: Machine, backend: str, error: str, told: str) -> None:
    assert machine.lacks(backend, lambda _code: error) == told


@pytest.mark.parametrize(
    ("weights_gib", "machine", "fit"), [(0.0, H100, 4), (17.0, H100, 3), (17.0, H200, 4), (70.0, H100, 1)]
)
def test_large_targets_are_served_fewer_at_once(tmp_path: Path, weights_gib: float, machine: Machine, fit: int) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(int(weights_gib * GIB))  # a hole: it takes no room on the disk
    setting = Setting(tmp_path, machine, "run", {"real": (str(tmp_path), str(tmp_path / "none"))})
    lab = Lab(setting, tmp_path / "proof.tar.gz", {}, at_once=4)
    assert gpu_pairs.servers_at_once(lab, ["real"]) == fit


def test_memory_shares_leave_room() -> None:
    for machine in (H100, H200, L4):
        assert 0.5 <= machine.mem_fraction(1) <= 0.97
        assert machine.memory_gib * (1 - machine.mem_fraction(1)) >= 3.0
    assert GIB == 2**30


def test_ratios_are_told_with_their_spread() -> None:
    turns = {"median": 2.5, "min": 2.25, "max": 2.75, "n": 3}
    line = {"system": "ddtree-16", "batch_size": 8, "accept_length": {"median": 3.4}}
    lines = [{"system": "plain"}, line | {"ratios_of_turns": {"plain": turns, "chain": None}}]
    assert ratios(lines) == "batch 8: 2.50 (2.25-2.75) x plain, - x chain, accept length 3.40"
