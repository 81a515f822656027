"""What a server says of itself at one moment, out of its `/metrics` and `/server_info`.

SGLang's gauges are set every `--decode-log-interval` rounds and keep their last value while the server idles; its
counters grow when an answer ends (observability/metrics_collector.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "ddtree_"
_HIDDEN = ("_created", "_bucket", "_sum")


@dataclass(frozen=True)
class Sample:
    """One look at a server. None: it does not say. `ours` are the series of this project by name and labels.

    `num_nodes` is of the newest round; expected, realised and measured values are sums since the server's start, of
    rounds whose budget policy "adaptive" chose.
    """

    running: float | None = None
    waiting: float | None = None
    tokens_per_s: float | None = None
    accept_length: float | None = None
    most_nodes: float | None = None
    num_nodes: float | None = None
    expected_tokens: float | None = None
    realised_tokens: float | None = None
    expected_s: float | None = None
    measured_s: float | None = None
    kv_usage: float | None = None
    finished_tokens: float | None = None
    finished_rounds: float | None = None
    finished_requests: float | None = None
    ours: Mapping[str, float] = field(default_factory=dict)


Series = tuple[str, Mapping[str, str], float]


def parse_metrics(text: str) -> Sample:
    """A look at `/metrics`, in Prometheus' text format.

    Ranks of one model tell the same, so the first one's counts; data-parallel ranks are added up, or averaged where
    the value is a ratio.

    Raises:
        ValueError: the text is of another format.
    """
    series = list(_series(text))

    def of(name: str) -> list[float]:
        return [value for found, _, value in series if found == name and math.isfinite(value)]

    def total(name: str) -> float | None:
        return sum(of(name)) if of(name) else None

    def mean(name: str) -> float | None:
        values = of(name)
        return sum(values) / len(values) if values else None

    usage = mean("sglang:full_token_usage")
    return Sample(
        running=total("sglang:num_running_reqs"),
        waiting=total("sglang:num_queue_reqs"),
        tokens_per_s=total("sglang:gen_throughput"),
        # 0 stands for a server that has not reported yet: an accept length is 1 or more.
        accept_length=mean("sglang:spec_accept_length") or None,
        most_nodes=mean("sglang:spec_num_draft_tokens") or None,
        num_nodes=mean("ddtree_nodes") or None,
        expected_tokens=total("ddtree_expected_tokens"),
        realised_tokens=total("ddtree_realised_tokens"),
        expected_s=total("ddtree_expected_round_seconds"),
        measured_s=total("ddtree_measured_round_seconds"),
        kv_usage=mean("sglang:token_usage") if usage is None else usage,
        finished_tokens=total("sglang:generation_tokens_total"),
        finished_rounds=total("sglang:spec_verify_calls_total"),
        finished_requests=total("sglang:num_requests_total"),
        ours=_ours(series),
    )


def _series(text: str) -> Iterator[Series]:
    from prometheus_client.parser import text_string_to_metric_families

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    first: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        group, rank = _rank(sample.labels)
        first[group] = min(rank, first.get(group, rank))
    for sample in samples:
        group, rank = _rank(sample.labels)
        if rank == first[group]:
            yield sample.name, sample.labels, float(sample.value)


def _rank(labels: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """The data-parallel group of a series and its place there. Under DP attention a group's ranks do not begin at 0."""
    told = (labels.get(name, "") for name in ("pp_rank", "tp_rank", "moe_ep_rank"))
    return labels.get("dp_rank", ""), tuple(int(rank) if rank.isdigit() else 0 for rank in told)


_COMMON = ("engine_type", "model_name", "tp_rank", "pp_rank", "moe_ep_rank", "pid", "is_streaming")
"""Labels that tell nothing of one server."""


def _ours(series: list[Series]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, labels, value in series:
        if name.startswith(OURS) and not name.endswith(_HIDDEN) and math.isfinite(value):
            told = ", ".join(f"{key}={labels[key]}" for key in sorted(labels) if key not in _COMMON)
            key = f"{name} ({told})" if told else name
            found[key] = found.get(key, 0.0) + value
    return found


def parse_info(info: Mapping[str, Any]) -> Sample:
    """A look at `/server_info`, which every server has and which tells less."""
    states = [one for one in info.get("internal_states") or () if isinstance(one, dict)]

    def values(name: str) -> list[float]:
        return [float(one[name]) for one in states if isinstance(one.get(name), (int, float))]

    rates, lengths = values("last_gen_throughput"), values("avg_spec_accept_length")
    return Sample(
        tokens_per_s=sum(rates) if rates else None,
        accept_length=sum(lengths) / len(lengths) if lengths else None,
    )


def describe(info: Mapping[str, Any]) -> str:
    """What is served, on one line; empty where the server does not say, as the workers' ingress."""
    if not info:
        return ""
    model = str(info.get("served_model_name") or info.get("model_path") or "").rstrip("/").rsplit("/", 1)[-1]
    algorithm = info.get("speculative_algorithm") or "plain decoding"
    nodes = info.get("speculative_num_draft_tokens")
    width = [f"N up to {nodes}"] if nodes and algorithm == "DDTREE" else []
    kinds = [str(info[name]) for name in ("dtype", "attention_backend") if info.get(name)]
    return ", ".join(part for part in (model, str(algorithm), *width, *kinds) if part)
