"""Scores as a file: one JSON line on where they come from, then one line per kind of prompt."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.provenance import source_record
from ddtree_sglang.whole_file import replace_text

PACKAGES = ("ddtree-sglang", "torch", "transformers", "numpy", "safetensors")


def write_results(path: Path, provenance: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Replace `path` in one step by a line {"provenance": ...} and a line per record."""
    lines = [json.dumps({"provenance": provenance}), *map(json.dumps, records)]
    replace_text(path, "\n".join(lines) + "\n")


def collect_provenance(arguments: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """JSON-ready: `facts` (what was scored), every argument, date, commit of a checkout, versions, machine."""
    return {
        **facts,
        "arguments": {name: _portable(value) for name, value in arguments.items()},
        **source_record(Path(__file__), PACKAGES),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _portable(value: Any) -> Any:
    """Paths by their name alone: the folder of a file says nothing about a score."""
    return value.name if isinstance(value, Path) else value
