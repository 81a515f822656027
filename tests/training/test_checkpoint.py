"""Checkpoints: a corrupt one neither counts nor stays in the way, and a full disk leaves nothing half written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ddtree_sglang.training.features.disk_space import DiskFullError
from ddtree_sglang.training.fit import checkpoint
from ddtree_sglang.training.fit.checkpoint import load_checkpoint, save_checkpoint


def _save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"step": step, "model": {"weight": torch.full((100_000,), float(step))}})


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_two_newest_are_kept_with_their_digests(tmp_path: Path) -> None:
    _save(tmp_path, 4, 8, 12)
    assert _names(tmp_path) == ["step-0000008.pt", "step-0000008.sha256", "step-0000012.pt", "step-0000012.sha256"]


def test_a_save_after_a_corrupt_one_keeps_what_is_intact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path, 40, 60)
    _damage(tmp_path / "step-0000060.pt")
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved["step"] == 40
    assert "step-0000060.pt is corrupt" in capsys.readouterr().out
    _save(tmp_path, 44, 48)
    assert [name for name in _names(tmp_path) if not name.endswith("sha256")] == [
        "step-0000044.pt",
        "step-0000048.pt",
        "step-0000060.pt.corrupt",
    ]
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved["step"] == 48


def test_a_folder_of_corrupt_checkpoints_is_refused_every_time(tmp_path: Path) -> None:
    _save(tmp_path, 40, 60)
    for path in tmp_path.glob("*.pt"):
        _damage(path)
    for _ in range(2):  # the second time the files are already renamed
        with pytest.raises(ValueError, match=rf"{tmp_path} has only corrupt ones: .*delete the folder to start anew"):
            load_checkpoint(tmp_path)


def test_what_is_saved_stays_even_beside_files_of_higher_steps(tmp_path: Path) -> None:
    _save(tmp_path, 40, 60, 8)
    assert (tmp_path / "step-0000008.pt").exists()


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None


def _assert_full_disk_is_explained(folder: Path, needed: str) -> None:
    with pytest.raises(DiskFullError, match=rf"step-0000012.pt needs {needed}, writing it failed .*: free some space"):
        _save(folder, 12)
    assert _names(folder) == ["step-0000004.pt", "step-0000004.sha256", "step-0000008.pt", "step-0000008.sha256"]
    saved = load_checkpoint(folder)
    assert saved is not None
    assert saved["step"] == 8


def test_full_disk_while_the_weights_are_written(tmp_path: Path) -> None:
    _save(tmp_path, 4, 8)
    (tmp_path / "step-0000012.pt.partial").symlink_to("/dev/full")  # the kernel's own ENOSPC
    _assert_full_disk_is_explained(tmp_path, r"0\.4 MB")


def test_full_disk_while_the_digest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 4, 8)

    def write_text(self: Path, *_: Any) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.Path, "write_text", write_text)
    _assert_full_disk_is_explained(tmp_path, r"0\.4 MB")
