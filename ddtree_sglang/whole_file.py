"""Text files that are whole at any time, and the folder of those that outlive a process."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "DDTREE_CACHE"


def cache_folder() -> Path:
    """`$DDTREE_CACHE`, else `~/.cache/ddtree_sglang`.

    Raises:
        RuntimeError: a user without a home.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ddtree_sglang").expanduser()


def replace_text(path: Path, text: str) -> None:
    """Replace the file by this UTF-8 text in one step; the folder is made if it is missing.

    A process that is killed while it writes leaves the old text, and of several that write the last one wins.

    Raises:
        OSError: it cannot be written; the old text stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
