"""Files in /dev/shm that an engine leaves behind: SGLang removes none of them outside its own CI.

Each engine makes one for its load, and more with several ranks. A killed process also leaves its semaphores. A replica
that ends removes its own load file by name; one that starts removes all such files that no process uses any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
PREFIXES = ("sglang_loads_", "sgl_shm_", "sem.mp-")
"""SGLang's loads and message queues, and the semaphores of Python's multiprocessing."""
YOUNG_S = 10.0
"""Younger files are left alone: their maker maps them within milliseconds, and may not have yet. In seconds."""


def load_file(port_args: Any) -> Path:
    """The file in which an engine publishes its load, from its `PortArgs` (managers/load_snapshot.py)."""
    from sglang.srt.managers.load_snapshot import shm_path_for

    return Path(shm_path_for(port_args.instance_id))


def remove(files: Iterable[Path]) -> None:
    """Remove files; those that are gone already are no error."""
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_unused(folder: Path = FOLDER) -> list[Path]:
    """Remove this user's files with one of `PREFIXES` that no process has mapped; returns them.

    The maps of other users' processes cannot be read, but those cannot map these files either: they are private.
    """
    if not folder.is_dir():
        return []
    used = _mapped_files()
    stale = [path for path in folder.iterdir() if path.name.startswith(PREFIXES) and _is_old_and_ours(path)]
    unused = [path for path in stale if str(path) not in used]
    remove(unused)
    if unused:
        logger.info("removed %d files of ended engines from %s", len(unused), folder)
    return unused


def _is_old_and_ours(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG_S


def _mapped_files() -> set[str]:
    mapped: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            lines = maps.read_text(errors="replace").splitlines()
            mapped.update(fields[5] for line in lines if len(fields := line.split(None, 5)) == 6)
    return mapped
