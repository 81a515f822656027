"""Only unused files are removed, and only of the families that engines leave behind."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.replicas import shared_memory


def old_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"\0" * mmap.PAGESIZE)
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    return path


def test_unused_old_files_of_engines_are_removed(tmp_path: Path) -> None:
    stale = {old_file(tmp_path, name) for name in ("sglang_loads_a_b.shm", "sgl_shm_mq_1_2", "sem.mp-x")}
    assert set(shared_memory.remove_unused(tmp_path)) == stale
    assert list(tmp_path.iterdir()) == []


def test_file_that_a_process_has_mapped_stays(tmp_path: Path) -> None:
    path = old_file(tmp_path, "sglang_loads_a_b.shm")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert shared_memory.remove_unused(tmp_path) == []
    assert shared_memory.remove_unused(tmp_path) == [path]


def test_young_files_and_other_families_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_file(tmp_path, "other_family")
    path = old_file(tmp_path, "sem.mp-x")
    # A clock that stands still: reading /proc, which comes first, makes no file older.
    made = path.stat().st_mtime
    for age_s, removed in ((shared_memory.YOUNG_S - 1, []), (shared_memory.YOUNG_S + 1, [path])):
        clock = SimpleNamespace(time=lambda now=made + age_s: now)
        monkeypatch.setattr(shared_memory, "time", clock)
        assert shared_memory.remove_unused(tmp_path) == removed
    assert [left.name for left in tmp_path.iterdir()] == ["other_family"]


def test_folder_that_is_missing_and_files_that_are_gone_are_no_error(tmp_path: Path) -> None:
    assert shared_memory.remove_unused(tmp_path / "none") == []
    shared_memory.remove([tmp_path / "gone"])


@pytest.mark.sglang
def test_load_file_is_where_sglang_writes_it() -> None:
    from sglang.srt.managers.load_snapshot import ShmLoadSnapshotWriter

    path = shared_memory.load_file(SimpleNamespace(instance_id=f"test{os.getpid()}"))
    try:
        ShmLoadSnapshotWriter(str(path), 1, 0)
        assert path.parent == shared_memory.FOLDER
        assert path.name.startswith(shared_memory.PREFIXES)
    finally:
        shared_memory.remove([path])
