"""The ingress's series at Ray's metrics port, as `ray_ddtree_ingress_*`, where those of all ingresses come together.

`/metrics` of an ingress behind Serve's proxy is that of whichever ingress answered; Prometheus therefore scrapes Ray
(deploy/monitoring/prometheus.yml). Brought up to date whenever an ingress is asked for anything, its health included.
"""

from __future__ import annotations

from workers.answers.router import RouterCounters
from workers.http.metrics import COUNTERS, PREFIX, RESUME_BUCKETS_S, RESUME_TEXT, totals


class RaySeries:
    """Mirrors a router's counters into `ray.util.metrics`."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._counters = {name: Counter(f"{PREFIX}_{name}_total", text) for name, _, text in COUNTERS}
        self._ready = Gauge(f"{PREFIX}_ready_replicas", "Replicas that made a token.")
        self._resume = Histogram(f"{PREFIX}_resume_seconds", RESUME_TEXT, list(RESUME_BUCKETS_S))
        self._shown = dict.fromkeys(self._counters, 0)

    def update(self, counters: RouterCounters, ready_replicas: int) -> None:
        """Add what was counted since the last time."""
        for name, value in totals(counters).items():
            if value > self._shown[name]:
                self._counters[name].inc(value - self._shown[name])
                self._shown[name] = value
        self._ready.set(ready_replicas)

    def observe_resume(self, seconds: float) -> None:
        """One loss of a worker that an answer survived."""
        self._resume.observe(seconds)
