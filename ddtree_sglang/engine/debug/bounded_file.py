"""A file of lines that never takes more than it may: at half of that it makes room for a new one."""

from __future__ import annotations

from pathlib import Path


class BoundedFile:
    """Appends lines to FILE. At half of `max_bytes` FILE becomes FILE.1, in place of an older one, and is begun anew.

    The newest half is there at any time. A file that an earlier process left is appended to.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._half = max_bytes // 2
        self._open()

    def has_room(self, line: str) -> bool:
        """Whether the line would go to the end of FILE; else FILE is begun anew before it is written."""
        return self._size == 0 or self._size + _size(line) <= self._half

    def write(self, line: str) -> None:
        """Append a line, which ends with a newline.

        Raises:
            OSError: no space, or the folder is gone.
        """
        if not self.has_room(line):
            self._file.close()
            self._path.replace(previous(self._path))
            self._open()
        self._file.write(line)
        self._size += _size(line)

    def _open(self) -> None:
        # Line by line: a reader sees whole lines while the server runs.
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._size = self._path.stat().st_size


def previous(path: Path) -> Path:
    """FILE.1, the older half."""
    return path.with_name(path.name + ".1")


def _size(line: str) -> int:
    return len(line.encode())
