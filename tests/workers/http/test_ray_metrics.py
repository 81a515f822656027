"""The ingress's series in Ray's metrics."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from workers.answers.router import RouterCounters
from workers.http.ray_metrics import RaySeries


class Series:
    made: ClassVar[dict[str, Series]] = {}

    def __init__(self, name: str, text: str, buckets: list[float] | None = None) -> None:
        self.values: list[float] = []
        Series.made[name] = self

    def inc(self, value: float) -> None:
        assert value > 0  # Ray raises on zero
        self.values.append(value)

    set = observe = lambda self, value: self.values.append(value)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Series.made = {}
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", Series)
    return Series.made


def test_counters_grow_by_what_is_new(made: dict[str, Any]) -> None:
    series, counters = RaySeries(), RouterCounters()
    counters.requests, counters.resumed, counters.restarted = 2, 1, 1
    series.update(counters, 2)
    series.update(counters, 1)
    counters.requests = 5
    series.update(counters, 2)
    assert made["ddtree_ingress_requests_total"].values == [2, 3]
    assert made["ddtree_ingress_resumed_total"].values == [2]
    assert made["ddtree_ingress_ready_replicas"].values == [2, 1, 2]


def test_each_survived_loss_is_observed(made: dict[str, Any]) -> None:
    RaySeries().observe_resume(0.5)
    assert made["ddtree_ingress_resume_seconds"].values == [0.5]
