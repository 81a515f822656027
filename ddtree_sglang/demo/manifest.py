"""A folder's manifest: size and SHA-256 of every file, so that a damaged copy is noticed before its use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Record every file of `folder` but Markdown, with `facts` such as the source's digest."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME and path.suffix != ".md"
    }
    text = json.dumps({"format": 1, **facts, "files": files}, indent=2)
    (folder / MANIFEST_NAME).write_text(text + "\n")


def manifest_problems(folder: Path, **facts: Any) -> list[str]:
    """What differs from the manifest, empty when every file is intact and the recorded facts are these."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        files, recorded = dict(manifest["files"]), {name: manifest.get(name) for name in facts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST_NAME} cannot be read ({error})"]
    problems = [
        f"{name} is {recorded[name]!r}, expected {value!r}" for name, value in facts.items() if recorded[name] != value
    ]
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, expected {entry['bytes']}")
        elif sha256_of(path) != entry["sha256"]:
            problems.append(f"{name} has another SHA-256 than recorded")
    return problems
