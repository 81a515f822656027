"""Checkpoints of a training run: written atomically, checked when read, the previous one kept.

A kill at any moment leaves the last complete checkpoint; one that does not match its digest is skipped with a
message in favour of the one before.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(folder: Path, step: int, payload: dict[str, Any], keep: int = 2) -> Path:
    """Write `step-N.pt` and its digest, then remove all but the newest `keep`.

    Raises:
        OSError: the disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"step-{step:07d}.pt", folder / f"step-{step:07d}.pt.partial"
    try:
        with partial.open("wb") as stream:
            torch.save(payload, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    path.with_suffix(".sha256").write_text(_digest(partial))
    partial.replace(path)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is intact, or None when there is none; says which ones it skips."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        expected = path.with_suffix(".sha256")
        if expected.exists() and expected.read_text() == _digest(path):
            payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return payload
        print(f"checkpoint {path} is corrupt (its digest differs): using the one before", flush=True)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
