"""Trace lines for the tests: the recorded sample, and lines made to order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / "trace.jsonl"
"""39 rounds of the embedded pair on the CPU platform: three requests at once, one with a budget of 3, one with 0."""

# 0 ─┬─ 1 ─┬─ 2 ── 5      first children: 1, 2, 5
#    │     └─ 4
#    └─ 3
PARENTS = [-1, 0, 1, 0, 1, 2, -1]
PROBS = [1.0, 0.6, 0.5, 0.3, 0.1, 0.05, 0.0]


def a_round(number: int = 0, batch_size: int = 1, **changed: Any) -> dict[str, Any]:
    """A round of the tree above, whose walk took nodes 1 and 4; one of its seven nodes is padding.

    A value of None leaves the field out, as a line of an older build does.
    """
    line = {
        "round": number,
        "draft_ms": 4.0,
        "verify_ms": 6.0,
        "total_ms": 10.0,
        "ended_s": 1.0 + number,
        "batch_size": batch_size,
        "request_ids": [f"request-{index}" for index in range(batch_size)],
        "prefix_lens": [10 + 3 * number] * batch_size,
        "node_limits": [7] * batch_size,
        "num_nodes": 7,
        "commit_lens": [3] * batch_size,
        "accept_index": [[0, 1, 4, -1]] * batch_size,
        "emitted_ids": [[101, 104, 9, 0]] * batch_size,
        "token_ids": [[100, 101, 102, 103, 104, 105, 0]] * batch_size,
        "parents": [PARENTS] * batch_size,
        "depths": [[0, 1, 2, 1, 2, 3, 0]] * batch_size,
        "path_probs": [PROBS] * batch_size,
        "free_slots": 500,
    }
    return {key: value for key, value in {**line, **changed}.items() if value is not None}


def write(path: Path, lines: Iterable[Any]) -> Path:
    """A file of these lines; text goes in as it is."""
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path
