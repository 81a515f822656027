"""`ddtree trace FILE --follow`: a line for each round as the server writes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ddtree_sglang.viewer.layout import plain_line
from ddtree_sglang.viewer.rounds import NotARound, Round, parse_round
from ddtree_sglang.viewer.trace_file import TraceError

INTERVAL_S = 0.5


def follow(path: Path, out: TextIO, *, request: str | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Print the rounds that are written from now on, until it is ended; `request`: of ids that begin so.

    Raises:
        TraceError: the file cannot be read.
    """
    for line in _new_lines(path, sleep):
        try:
            found = parse_round(line)
        except NotARound:
            continue
        if request is None or any(part.request_id.startswith(request) for part in found.parts):
            out.write(one_line(found) + "\n")
            out.flush()


def one_line(found: Round) -> str:
    """A round in short."""
    number = "-" if found.number is None else str(found.number)
    nodes = "-" if found.num_nodes is None else str(found.num_nodes)
    parts = [f"round {number:>6}", f"{found.batch_size:>3} requests", f"N {nodes:>3}", f"{found.total_ms:8.1f} ms"]
    if found.tokens is not None:
        expected = "" if found.expected_tokens is None else f" of {found.expected_tokens:6.2f} expected"
        parts.append(f"{found.tokens:>4} tokens{expected}")
    return "  ".join([*parts, *([plain_line(found.decision)] if found.decision else [])])


def _new_lines(path: Path, sleep: Callable[[float], None]) -> Iterator[bytes]:
    """Whole lines behind the present end; of a file that takes this one's place, or is emptied, from its beginning."""
    try:
        file = path.open("rb")
        file.seek(0, os.SEEK_END)
        while True:
            line = file.readline()
            if line.endswith(b"\n"):
                yield line
                continue
            # Not whole yet: the rest comes with the next look.
            file.seek(-len(line), os.SEEK_CUR)
            if not line and _is_replaced(path, file.fileno(), file.tell()):
                file.close()
                file = path.open("rb")
                continue
            sleep(INTERVAL_S)
    except OSError as error:
        raise TraceError(f"a trace must be a readable file, got {path}: {error.strerror}.") from error


def _is_replaced(path: Path, descriptor: int, place: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        theirs = path.stat()
    except FileNotFoundError:
        # Between the move of the full file and the start of the next.
        return False
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) or theirs.st_size < place
