"""The cost of a feature is told from rounds of the right batch size, and from the stages that are no forward."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import feature_cost

STAGES = ("prepare", "draft", "build", "verify", "accept", "commit", "context")


def line(batch_size: int, **times: float) -> str:
    """A round of the trace; stages take 1 ms each unless told otherwise."""
    return json.dumps({"batch_size": batch_size, **{f"{name}_ms": times.get(name, 1.0) for name in STAGES}}) + "\n"


def server_with(trace: Path, monkeypatch: pytest.MonkeyPatch, with_it: float) -> Any:
    """A server that writes a round for each batch, one with another batch size and, at first, slow ones."""
    asked = {"count": 0}

    def ask(_url: str, prompts: Any, _limit: int, feature: dict[str, Any]) -> None:
        asked["count"] += 1
        slow = 100.0 if asked["count"] <= 2 else 0.0
        with trace.open("a") as file:
            file.write(line(len(prompts), accept=slow + (with_it if feature else 1.0), verify=10.0))
            file.write(line(len(prompts) + 1, accept=50.0))

    monkeypatch.setattr(feature_cost, "ask_together", ask)
    return SimpleNamespace(url="", trace_path=trace)


def test_what_a_feature_adds_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_with(tmp_path / "trace", monkeypatch, with_it=1.8)
    cost = feature_cost.measure(server, "penalties", [[1], [2]], argparse.Namespace(repeats=3, max_new_tokens=4))
    assert cost.added_ms == pytest.approx(0.8)
    assert cost.share == pytest.approx(0.8 / 16)
    assert (cost.without.num_rounds, cost.having.num_rounds, cost.batch_size) == (3, 3, 2)
    record = cost.to_json()
    assert (record["feature"], record["added_ms"]) == ("penalties", cost.added_ms)


def test_without_rounds_of_the_batch_size_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_with(tmp_path / "trace", monkeypatch, with_it=1.0)
    with pytest.raises(ValueError, match="no round had all 2 requests"):
        feature_cost.measure(server, "penalties", [[1], [2]], argparse.Namespace(repeats=0, max_new_tokens=4))
