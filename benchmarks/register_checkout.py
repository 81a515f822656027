"""Make a checkout that is on PYTHONPATH known to SGLang as a plugin, where nothing can be installed.

    export PYTHONPATH="$(python -m benchmarks register_checkout FOLDER):$PWD:$PYTHONPATH"

SGLang finds plugins by the entry points of installed packages. This writes the metadata of one into FOLDER, from
pyproject.toml, and prints the folder.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.provenance import REPO


def write_metadata(folder: Path) -> Path:
    """Write `<name>-<version>.dist-info` with METADATA and entry_points.txt; returns it."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    target = folder / f"{name}-{version}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    groups = {"console_scripts": project.get("scripts", {}), **project["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in one.items()) for group, one in groups.items()
    ]
    (target / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return target


def main(argv: Sequence[str]) -> int:
    """Write into the folder that the one argument names."""
    if len(argv) != 1:
        print("usage: python -m benchmarks register_checkout FOLDER", file=sys.stderr)
        return 2
    print(write_metadata(Path(argv[0]).absolute()).parent)
    return 0
