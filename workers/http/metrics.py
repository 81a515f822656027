"""The counters of an ingress as Prometheus series: at its own `/metrics`, and at Ray's metrics port.

`/metrics` behind Serve's proxy is that of the one ingress that answered. At Ray's port the series of all ingresses
(`ray_ddtree_ingress_*`) stand beside the engines' own (`ray_sglang_*`), so Prometheus scrapes that port
(deploy/monitoring/prometheus.yml).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily

from workers.answers.retry import AnswerCounters

PREFIX = "ddtree_ingress"
RESUME_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RESUME_TEXT = "From the loss of a replica to the next token of its answer."
# Series, the fields of `AnswerCounters` that it sums, its help text.
COUNTERS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("requests", ("requests",), "Answers asked for."),
    ("tokens", ("tokens",), "Tokens sent to clients."),
    ("worker_lost", ("lost",), "Replicas that died or hung while they made an answer."),
    ("resumed", ("resumed", "restarted"), "Attempts that went on at another replica."),
    ("gave_up", ("gave_up", "not_resumable"), "Answers that ended with an error after their replica was lost."),
    ("late", ("late",), "Answers that were not complete by their deadline."),
    ("rejected", ("busy",), "Requests that got a 429 because replicas and queues were full."),
    ("cancelled", ("cancelled",), "Answers whose client went away."),
)


def totals(counters: AnswerCounters) -> dict[str, int]:
    """The value of each series of `COUNTERS`."""
    return {name: sum(getattr(counters, part) for part in parts) for name, parts, _ in COUNTERS}


class IngressMetrics:
    """The series at `/metrics`, in a registry of their own."""

    def __init__(self) -> None:
        self._counters = AnswerCounters()
        self._registry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]
        self._ready = Gauge(f"{PREFIX}_ready_replicas", "Replicas that made a token.", registry=self._registry)
        self.resume_seconds = Histogram(
            f"{PREFIX}_resume_seconds",
            RESUME_TEXT,
            buckets=RESUME_BUCKETS_S,
            registry=self._registry,
        )

    def count(self, counters: AnswerCounters) -> None:
        """Show these counters instead of zeros."""
        self._counters = counters

    def collect(self) -> Iterator[Any]:
        """prometheus_client's collector protocol: reads the counters when Prometheus asks."""
        values = totals(self._counters)
        for name, _, text in COUNTERS:
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, values[name])

    def text(self, ready_replicas: int) -> bytes:
        """Prometheus' text format."""
        self._ready.set(ready_replicas)
        return bytes(generate_latest(self._registry))


class RaySeries:
    """The series at Ray's metrics port."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._counters = {name: Counter(f"{PREFIX}_{name}_total", text) for name, _, text in COUNTERS}
        self._ready = Gauge(f"{PREFIX}_ready_replicas", "Replicas that made a token.")
        self._resume = Histogram(f"{PREFIX}_resume_seconds", RESUME_TEXT, list(RESUME_BUCKETS_S))
        self._shown = dict.fromkeys(self._counters, 0)

    def update(self, counters: AnswerCounters, ready_replicas: int) -> None:
        """Add what was counted since the last call."""
        for name, value in totals(counters).items():
            if value > self._shown[name]:
                self._counters[name].inc(value - self._shown[name])
                self._shown[name] = value
        self._ready.set(ready_replicas)

    def observe_resume(self, seconds: float) -> None:
        """Record the seconds from the loss of a replica to the next token of its answer."""
        self._resume.observe(seconds)
