"""Checkpoints of a training run: written atomically, checked when read, the previous one kept.

A kill at any moment leaves the last complete checkpoint. A checkpoint that differs from its digest is renamed to
`*.corrupt` with a message, and the one before it is read. A folder whose checkpoints are all corrupt is refused: a run
that began anew there would look like the old one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.features.disk_space import full_disk_explained

ROOM_REMEDY = (
    "free some space and start the same command again, it goes on from the checkpoint before; or name another --work."
)


def save_checkpoint(folder: Path, step: int, payload: dict[str, Any], keep: int = 2) -> Path:
    """Write `step-N.pt` and its digest, then remove older ones so that `keep` remain, this one among them.

    Raises:
        DiskFullError: the disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"step-{step:07d}.pt", folder / f"step-{step:07d}.pt.partial"
    try:
        with full_disk_explained(path, _tensor_bytes(payload), ROOM_REMEDY):
            _write(payload, partial)
            path.with_suffix(".sha256").write_text(_digest(partial))
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        if not path.exists():
            path.with_suffix(".sha256").unlink(missing_ok=True)
        raise
    older = sorted(old for old in folder.glob("step-*.pt") if old.name < path.name)
    for old in older[: max(0, len(older) + 1 - keep)]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is intact, or None when there never was one.

    Corrupt ones on the way are renamed to `*.corrupt`, so that they neither count nor displace new ones.

    Raises:
        ValueError: there are checkpoints, and none is intact.
    """
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        expected = path.with_suffix(".sha256")
        if expected.exists() and expected.read_text() == _digest(path):
            payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return payload
        aside = path.with_name(path.name + ".corrupt")
        path.replace(aside)
        expected.unlink(missing_ok=True)
        print(f"checkpoint {path} is corrupt (its digest differs): renamed to {aside.name}", flush=True)
    corrupt = sorted(path.name for path in folder.glob("step-*.pt.corrupt"))
    if corrupt:
        raise ValueError(
            f"a run goes on from an intact checkpoint; {folder} has only corrupt ones: {', '.join(corrupt)}. "
            "Put an intact copy there with its .sha256, or delete the folder to start anew."
        )
    return None


def _write(payload: dict[str, Any], partial: Path) -> None:
    with partial.open("wb") as stream:
        torch.save(payload, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists, which is about the size of the file."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_tensor_bytes, parts))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
