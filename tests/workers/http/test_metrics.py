"""The ingress's series, at its own address and in Ray's metrics."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from workers.answers.retry import AnswerCounters
from workers.http.metrics import IngressMetrics, RaySeries


def counting(counters: AnswerCounters) -> IngressMetrics:
    metrics = IngressMetrics()
    metrics.count(counters)
    return metrics


def values(metrics: IngressMetrics, ready: int = 0) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text(ready).decode())
    return {
        sample.name: sample.value for family in families for sample in family.samples if "bucket" not in sample.name
    }


def test_series_are_the_routers_counters_as_they_stand() -> None:
    counters = AnswerCounters()
    metrics = counting(counters)
    counters.requests, counters.tokens, counters.lost = 3, 40, 2
    counters.resumed, counters.restarted, counters.gave_up, counters.not_resumable = 1, 1, 1, 2
    counters.busy = 5
    seen = values(metrics, ready=2)
    assert seen["ddtree_ingress_requests_total"] == 3
    assert seen["ddtree_ingress_tokens_total"] == 40
    assert seen["ddtree_ingress_worker_lost_total"] == 2
    assert seen["ddtree_ingress_resumed_total"] == 2
    assert seen["ddtree_ingress_gave_up_total"] == 3
    assert seen["ddtree_ingress_rejected_total"] == 5
    assert seen["ddtree_ingress_ready_replicas"] == 2


def test_two_ingresses_in_a_process_count_apart() -> None:
    first, second = counting(AnswerCounters(requests=1)), counting(AnswerCounters())
    assert values(first)["ddtree_ingress_requests_total"] == 1
    assert values(second)["ddtree_ingress_requests_total"] == 0


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
    series, counters = RaySeries(), AnswerCounters()
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
