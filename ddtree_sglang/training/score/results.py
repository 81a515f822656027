"""Scores as a file: one JSON line that says where they come from, then one per kind of prompt.

`benchmarks/harness/provenance.py` does the same for benchmarks; it lies outside the package, which has to stand alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.whole_file import replace_text

PACKAGES = ("ddtree-sglang", "torch", "transformers", "numpy", "safetensors")


def write_results(path: Path, provenance: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Replace `path` by one line {"provenance": ...} and one per record, in one step."""
    lines = [json.dumps({"provenance": provenance}), *map(json.dumps, records)]
    replace_text(path, "\n".join(lines) + "\n")


def collect_provenance(args: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """JSON-ready: `facts` (what was scored), every flag, date, commit of a checkout, versions, machine."""
    return {
        **facts,
        "arguments": {name: _portable(value) for name, value in vars(args).items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_sha": _git("rev-parse", "HEAD"),
        "dirty": None if (status := _git("status", "--porcelain", "--untracked-files=no")) is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
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
    """Paths by their name alone: where somebody keeps files says nothing about a score."""
    return value.name if isinstance(value, Path) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git in the checkout that this file is part of; None for an installed package."""
    here = Path(__file__)
    tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    command = ["git", "-C", str(here.parent), *arguments]
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
