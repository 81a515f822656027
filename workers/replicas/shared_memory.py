"""Files in /dev/shm that an engine leaves behind: SGLang removes none of them outside its own CI.

Each engine makes one for its load, and more with several ranks; a killed process leaves its semaphores, too. A replica
that ends removes what it knows by name; one that starts removes what nobody uses any more, of whoever was killed.
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
"""Whoever makes such a file maps it within milliseconds."""


def load_file(port_args: Any) -> Path:
    """The file of an engine's load, by its `PortArgs` (managers/load_snapshot.py)."""
    from sglang.srt.managers.load_snapshot import shm_path_for

    return Path(shm_path_for(port_args.instance_id))


def remove(files: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_unused(folder: Path = FOLDER) -> list[Path]:
    """Remove this user's files of those families that no process has mapped; returns them.

    A process whose maps may not be read belongs to another user, who could not map them either: they are private.
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
