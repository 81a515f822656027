"""A mapped file owns its blocks before it is written, and a full disk is an error that says what to do."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ddtree_sglang.training.features import disk_space
from ddtree_sglang.training.features.disk_space import (
    DiskFullError,
    allocate_file,
    full_disk_explained,
    require_free_space,
)

MIB = 1 << 20


def _refuse(*_: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("supported", [True, False])
def test_a_file_gets_all_its_blocks_and_keeps_what_it_holds(
    supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported:
        monkeypatch.setattr(disk_space.os, "posix_fallocate", _refuse)
    path = tmp_path / "file"
    path.write_bytes(b"held")
    allocate_file(path, 3 * MIB + 5)
    assert path.stat().st_size == 3 * MIB + 5
    assert disk_space.held_bytes(path) >= 3 * MIB + 5
    assert path.read_bytes()[:6] == b"held\0\0"
    allocate_file(path, 2)
    assert path.read_bytes() == b"he"


LIMITED = """
import os, sys
from pathlib import Path
from ddtree_sglang.training.features.disk_space import DiskFullError, allocate_file, full_disk_explained
path = Path(sys.argv[1])
if sys.argv[2] == "written":
    del os.posix_fallocate
try:
    with full_disk_explained(path, 1 << 20, "use less."):
        allocate_file(path, 1 << 20)
except DiskFullError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["reserved", "written"])
def test_a_file_that_does_not_fit_is_refused_and_as_long_as_before(how: str, tmp_path: Path) -> None:
    """The kernel's own refusal: a process that may not write files of more than 64 KiB."""
    path = tmp_path / "file"
    path.write_bytes(b"held")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), how], capture_output=True, text=True, preexec_fn=limit, check=True
    )
    assert f"{path} needs 1.0 MB, writing it failed (File too large)" in done.stdout
    assert done.stdout.strip().endswith("are free: use less.")
    assert path.read_bytes() == b"held"


def test_space_is_asked_for_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5_000_000})
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage)
    require_free_space(tmp_path / "file", 5_000_000, "use less.")
    with pytest.raises(DiskFullError, match=r"file needs 2\.50 GB, 5\.0 MB are free: use less\."):
        require_free_space(tmp_path / "file", 2_500_000_000, "use less.")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_explained(tmp_path / "file", 1, "use less."):
        raise PermissionError(errno.EACCES, "no")
