"""Summarise the trace of a DDTREE server: where a round's time goes, stage by stage.

Reads the lines that `--speculative-ddtree-trace FILE` writes (ddtree_sglang/engine/debug/trace.py), nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

FORWARD_STAGES = ("draft", "verify", "context")
"""What models compute: the draft block, the target's pass, and the drafter's KV of the accepted tokens, which the stock
chain computes as well. Every other stage is what a tree costs on top, and is held to 5 % of the round."""


@dataclass(frozen=True)
class StageSummary:
    """Median time of each stage over the rounds of one batch size, in ms, and the share tree work takes."""

    batch_size: int
    num_rounds: int
    round_ms: float
    stage_ms: dict[str, float]
    tree_share: float  # build, mask, accept, commit and the rest that is not a forward: share of all the time

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)


NOT_STAGES = ("total_ms", "expected_ms")
"""Times of a line that are no stage's: their sum, and what a policy expected."""


class TraceReader:
    """Follows one trace file: `mark` the present end, later `since_mark` gives the rounds in between."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def mark(self) -> None:
        """Forget all rounds written so far."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def since_mark(self) -> list[dict[str, Any]]:
        """Rounds written since the mark, oldest first; a last line still being written is left out."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as handle:
            handle.seek(self._offset)
            lines = handle.read().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]


def _stages(line: dict[str, Any]) -> dict[str, float]:
    return {
        key.removesuffix("_ms"): float(value)
        for key, value in line.items()
        if key.endswith("_ms") and key not in NOT_STAGES
    }


def summarise(rounds: list[dict[str, Any]], batch_size: int) -> StageSummary | None:
    """Summary of the rounds that had exactly `batch_size` requests; None when there are none."""
    chosen = [_stages(line) for line in rounds if line["batch_size"] == batch_size]
    if not chosen:
        return None
    total = sum(sum(stages.values()) for stages in chosen)
    forwards = sum(stages[name] for stages in chosen for name in FORWARD_STAGES if name in stages)
    return StageSummary(
        batch_size=batch_size,
        num_rounds=len(chosen),
        round_ms=median(sum(stages.values()) for stages in chosen),
        stage_ms={name: median(stages[name] for stages in chosen) for name in chosen[0]},
        tree_share=1.0 - forwards / total,
    )
