"""Pictures of results: `python -m benchmarks plot FILE.jsonl ...` writes PNG files beside each result file.

Reads result lines only, of `decode`, `budget_sweep`, `acceptance`, `surrogate` and `serving`: a picture of each kind
that a file has data for. Of a file with several dtypes each gets pictures of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pictures import acceptance, curves, decode, serving, surrogate
from benchmarks.pictures.style import Lines

Drawer = Callable[[Lines, Path], list[Path]]
DRAWERS: dict[str, tuple[Drawer, ...]] = {
    "decode": (decode.draw, curves.draw),
    "acceptance": (acceptance.draw,),
    "surrogate": (surrogate.draw,),
    "serving": (serving.draw,),
}
"""Kind of result line -> what draws it."""


def draw_file(file: Path) -> list[Path]:
    """Every picture of a result file.

    Raises:
        ValueError: it holds no line of a kind that can be drawn.
    """
    text = file.read_text(encoding="utf-8")
    # Files of `decode` from before there were kinds have none.
    lines = [{"kind": "decode", **json.loads(line)} for line in text.splitlines() if line]
    drawn: list[Path] = []
    for kind, drawers in DRAWERS.items():
        of_kind = [line for line in lines if line["kind"] == kind]
        dtypes = list(dict.fromkeys(line.get("dtype") for line in of_kind))
        for dtype in dtypes:
            stem = file.with_suffix("") if len(dtypes) == 1 else file.with_name(f"{file.stem}-{dtype}")
            chosen = [line for line in of_kind if line.get("dtype") == dtype]
            drawn += [path for drawer in drawers for path in drawer(chosen, stem)]
    if not drawn:
        raise ValueError(f"{file} holds no result line of {', '.join(DRAWERS)}")
    return drawn


def main(argv: Sequence[str]) -> int:
    """Draw every picture that the files have data for; prints the paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSONL written by a benchmark")
    for file in parser.parse_args(argv).files:
        try:
            drawn: list[Any] = draw_file(file)
        except (OSError, ValueError, KeyError) as error:
            print(f"plot: {file.name} cannot be drawn: {error!r}", file=sys.stderr)
            return 1
        print("\n".join(map(str, drawn)))
    return 0
