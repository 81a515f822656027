"""The pairs that a GPU proof serves: a tiny one made on the spot, one of a real size without weights, a carried one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness.gpu_lab import Lab
from benchmarks.harness.gpu_machine import GIB
from benchmarks.harness.gpu_setting import pair_digest

GIB_OF_SHAPE = {"qwen3-8b": 24.0, "qwen3-0.6b": 5.0}
"""Of a server with bfloat16 weights, its drafter, 32k tokens of KV cache and captured graphs; the largest first."""
SERVERS_OF_SHAPE = 3
REST_OF_SERVER_GIB = 6.0
"""Beside its weights: a CUDA context, 16k tokens of KV cache, captured graphs, activations."""


def prepare(lab: Lab, name: str) -> None:
    """Make a pair servable and known to the setting; nothing the second time.

    Raises:
        OSError: it could not be made; the log of the section tells why.
    """
    setting = lab.setting
    if name in setting.identity:
        return
    if name in ("tiny", "recurrent"):
        setting.pairs[name] = _made(lab, name, f"{name}_pair")
    elif name == "shape":
        setting.pairs[name] = _shape(lab)
    else:
        file = lab.out / f"prompts-{name}.json"
        if not file.exists():
            model, count = setting.pair(name)[0], str(setting.scale.prompts)
            _run(lab, "gpu_prompts", model, count, str(file))
    digest = pair_digest(setting.pairs[name])
    packages = (f"{name}={version}" for name, version in setting.provenance["packages"].items())
    of_machine = (setting.machine.name, *packages)
    parts = (setting.provenance["code"], *of_machine, digest, *setting.scale.parts(), *setting.server_flags)
    setting.identity[name] = " ".join(map(str, parts))
    setting.save()


def servers_at_once(lab: Lab, names: Iterable[str]) -> int:
    """How many servers of these pairs the card holds at once: as many as the cores start, but for a large target."""
    machine, most = lab.setting.machine, lab.at_once
    if machine.kind == "cpu":
        return most
    largest = max(_weights_gib(lab.setting.pair(name)) for name in names)
    return max(1, machine.fits(largest + REST_OF_SERVER_GIB, most))


def _weights_gib(folders: tuple[str, str]) -> float:
    files = (path for folder in folders for path in Path(folder).glob("*.safetensors"))
    return sum(path.stat().st_size for path in files) / GIB


def _shape(lab: Lab) -> tuple[str, str]:
    """Large where three servers of it fit; the tiny pair on a processor."""
    if lab.setting.machine.kind == "cpu":
        prepare(lab, "tiny")
        return lab.setting.pair("tiny")
    fitting = (name for name, gib in GIB_OF_SHAPE.items() if lab.setting.machine.fits(gib, SERVERS_OF_SHAPE) == 3)
    return _made(lab, "shape", "dummy_pair", "--shape", next(fitting, "qwen3-0.6b"))


def _made(lab: Lab, name: str, program: str, *flags: str) -> tuple[str, str]:
    folder = lab.out / "pairs" / name
    made = (folder / "target", folder / "draft")
    whole = folder / "complete"
    if not whole.exists():
        _run(lab, program, str(folder), *flags)
        whole.touch()
    return str(made[0]), str(made[1])


def _run(lab: Lab, program: str, *arguments: str) -> None:
    status = lab.python("-m", "benchmarks", program, *arguments)
    if status:
        raise OSError(f"`python -m benchmarks {program}` failed with status {status}, its output is above")
