"""Decisions as metrics: sums with SGLang's labels, now and then, by the rank that has a collector."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine import decision_metrics
from ddtree_sglang.engine.decision_metrics import LEAST_SECONDS, export_decisions
from ddtree_sglang.engine.stages.round_records import Totals
from tests.engine.test_pair_watch import Collector

pytestmark = pytest.mark.sglang


@pytest.fixture
def ddtree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_metrics, "serves_ddtree", lambda: True)


def exported(totals: Totals | None, *, has_collector: bool = True) -> dict[str, float]:
    values: dict[str, float] = {}
    worker = SimpleNamespace(budget=SimpleNamespace(totals=totals))
    processor: Any = SimpleNamespace(
        model_worker=worker, metrics_collector=Collector(values) if has_collector else None
    )
    batch: Any = None
    export_decisions([], processor, SimpleNamespace(num_nodes=9), batch)  # type: ignore[arg-type]
    return values


def test_sums_and_decisions_are_exported(ddtree: None) -> None:
    totals = Totals({"plain": 10, "tree": 22}, 50.5, 48.0, 1.5, 1.6)
    assert exported(totals) == {
        "ddtree_expected_tokens[tiny]": 50.5,
        "ddtree_realised_tokens[tiny]": 48.0,
        "ddtree_expected_round_seconds[tiny]": 1.5,
        "ddtree_measured_round_seconds[tiny]": 1.6,
        "ddtree_nodes[tiny]": 9.0,
        "ddtree_rounds[tiny,plain]": 10.0,
        "ddtree_rounds[tiny,tree]": 22.0,
    }


def test_between_looks_without_a_choice_and_without_a_collector_nothing_is(
    ddtree: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [7.0]
    monkeypatch.setattr(decision_metrics.time, "monotonic", lambda: clock[0])
    totals = Totals({"tree": 1})
    assert exported(totals), "the first round of a server"
    clock[0] += LEAST_SECONDS / 2
    assert exported(totals) == {}
    clock[0] += LEAST_SECONDS / 2
    assert exported(totals)
    assert exported(None) == {}
    assert exported(Totals({"tree": 32}), has_collector=False) == {}


def test_another_algorithm_has_no_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_metrics, "serves_ddtree", lambda: False)
    assert exported(Totals({"tree": 32})) == {}
