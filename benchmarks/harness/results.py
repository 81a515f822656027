"""Files of results: where a run writes by itself, and how lines are written while it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import REPO
from ddtree_sglang.whole_file import replace_text

Lines = Sequence[dict[str, Any]]


def new_result(name: str, ending: str) -> Path:
    """A file or folder of the results folder, named by what is measured and the time of the run."""
    return REPO / f"benchmarks/results/{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{ending}"


def save_lines(lines: Lines, table: Callable[[Lines], str], output: Path) -> None:
    """Lines to `output` and their table beside it, each in one step: a killed run leaves whole files."""
    replace_text(output, "".join(json.dumps(line) + "\n" for line in lines))
    replace_text(output.with_suffix(".md"), table(lines) + "\n")
