"""Where a number comes from: date, commit, Python and package versions. Benchmarks and scores record it alike."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def source_record(source: Path, packages: Sequence[str]) -> dict[str, Any]:
    """JSON-ready facts of a result that the file `source` computes.

    `git_sha` and `dirty` (tracked files differ from that commit) are of the checkout that tracks `source`, None where
    none does, as in an installed package. A package that is not installed has the version None.
    """
    status = _git(source, "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_sha": _git(source, "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(source: Path, *arguments: str) -> str | None:
    """Output of git in the checkout that tracks `source`; None where none does."""
    git = ["git", "-C", str(source.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=True)
        return subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
