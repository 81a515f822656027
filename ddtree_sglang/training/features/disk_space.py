"""Take disk space before it is used, and explain a full disk: which file, how much it needs, and what to do.

A mapped file must own its blocks beforehand. A sparse file takes them when a page is first written; on a full disk the
process then ends by SIGBUS without a message, where a plain write would raise OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
ZEROS = bytes(1 << 20)


class DiskFullError(OSError):
    """There is no room for a file; the message names it, its size, what is free and what to do."""


def require_free_space(path: Path, needed: int, remedy: str) -> None:
    """Raise DiskFullError unless the disk of `path` has `needed` bytes free; the folder of `path` must exist."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DiskFullError(_message(path, needed, f"{_size(free)} are free", remedy))


@contextlib.contextmanager
def full_disk_explained(path: Path, needed: int, remedy: str) -> Iterator[None]:
    """Turn a full disk, a quota or a limit on file sizes inside the block into a DiskFullError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or error.errno not in FULL:
            raise
        free = _size(shutil.disk_usage(path.parent).free)
        finding = f"writing it failed ({os.strerror(error.errno)}), {free} are free"
        raise DiskFullError(_message(path, needed, finding, remedy)) from error


def allocate_file(path: Path, size: int) -> None:
    """Make `path` exactly `size` bytes long, every block on the disk; what it holds within them stays.

    Raises:
        OSError: no room; the file is then as long as it was.
    """
    # Not in append mode, which glibc's substitute for a missing call refuses.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            _reserve(stream, before, size)
        except OSError:
            stream.truncate(before)
            raise
        stream.truncate(size)


def _reserve(stream: FileIO, before: int, size: int) -> None:
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
    # Some file systems have no such call: bytes that are written take their blocks, too.
    at = before
    while at < size:
        at += stream.write(ZEROS[: size - at])


def held_bytes(path: Path) -> int:
    """Bytes that a file's blocks take on the disk, 0 when there is none."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def _message(path: Path, needed: int, finding: str, remedy: str) -> str:
    return f"{path} needs {_size(needed)}, {finding}: {remedy}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
