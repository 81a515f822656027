"""Rounds in plain steps: each against the plain server of its own group, dataset and batch size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import round_cost


def line(system: str, rate: float, round_ms: float | None, group: tuple[str, ...], size: int = 1) -> dict[str, Any]:
    return {
        "system": system,
        "dataset": "held-out",
        "batch_size": size,
        "up_together": list(group),
        "decode_tokens_per_s": {"median": rate},
        "ms_per_round": None if round_ms is None else {"median": round_ms},
    }


def test_cost_is_relative_to_the_plain_server_up_at_the_same_time() -> None:
    first, second = ("plain", "ddtree-8"), ("plain", "ddtree-16")
    costs = round_cost.round_costs(
        [
            line("plain", 100, None, first),
            line("ddtree-8", 1, 12.0, first),
            line("plain", 50, None, second),
            line("ddtree-16", 1, 30.0, second),
            line("ddtree-16", 1, 99.0, second, size=8),  # no plain line of that size
        ]
    )
    assert costs == pytest.approx({("ddtree-8", 1): 1.2, ("ddtree-16", 1): 1.5})
    assert "| ddtree-16 | 1.50 |" in round_cost.cost_table(costs)


def test_a_file_without_rounds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps(line("plain", 100, None, ("plain",))) + "\n")
    assert round_cost.main([str(path)]) == 1
    assert "no line has both" in capsys.readouterr().err
