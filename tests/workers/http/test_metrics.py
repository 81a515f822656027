"""The ingress's series."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from workers.answers.router import RouterCounters
from workers.http.metrics import IngressMetrics


def counting(counters: RouterCounters) -> IngressMetrics:
    metrics = IngressMetrics()
    metrics.count(counters)
    return metrics


def values(metrics: IngressMetrics, ready: int = 0) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text(ready).decode())
    return {
        sample.name: sample.value for family in families for sample in family.samples if "bucket" not in sample.name
    }


def test_series_are_the_routers_counters_as_they_stand() -> None:
    counters = RouterCounters()
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
    first, second = counting(RouterCounters(requests=1)), counting(RouterCounters())
    assert values(first)["ddtree_ingress_requests_total"] == 1
    assert values(second)["ddtree_ingress_requests_total"] == 0
