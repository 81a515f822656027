"""Numbers over many rounds: by shape of a round, by request, and a course thinned to what a picture can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ddtree_sglang.viewer.trace_file import Summary

FORWARDS = ("draft", "verify", "context")
"""What models compute; the other stages are what a tree costs on top."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Rounds of one batch size and number of nodes: medians in ms, tokens of a request and round as means."""

    batch_size: int
    num_nodes: int | None
    num_rounds: int
    round_ms: float
    stages_ms: dict[str, float]
    tokens: float | None
    expected_tokens: float | None

    @property
    def token_ms(self) -> float | None:
        """Time per emitted token of the batch."""
        return self.round_ms / (self.tokens * self.batch_size) if self.tokens and self.batch_size else None


@dataclass(frozen=True, slots=True)
class RequestCourse:
    """One request: its rounds that were traced, their tokens, and the least and most nodes that it could walk."""

    request_id: str
    num_rounds: int
    tokens: int | None
    least_nodes: int | None
    most_nodes: int | None


def tokens_per_round(rounds: Iterable[Summary]) -> float | None:
    """Accept length: tokens of a request and round, bonus included; None where no line says."""
    known = [one for one in rounds if one.tokens is not None and one.batch_size]
    parts = sum(one.batch_size for one in known)
    return sum(one.tokens or 0 for one in known) / parts if parts else None


def expected_per_round(rounds: Iterable[Summary]) -> float | None:
    """The same as expected."""
    known = [one for one in rounds if one.expected_tokens is not None and one.batch_size]
    parts = sum(one.batch_size for one in known)
    return sum(one.expected_tokens or 0.0 for one in known) / parts if parts else None


def measured_share(rounds: Iterable[Summary]) -> float | None:
    """Time from rounds' beginnings to the next ones' as a share of what was expected; None where no line says both."""
    told = (one.measured for one in rounds if one.measured is not None)
    return _share((one.ms, one.expected_ms) for one in told)


def time_share(rounds: Iterable[Summary]) -> float | None:
    """Time of rounds' stages as a share of what a policy expected from one round to the next; None where it did not.

    The rest of that time is the scheduler's, and the trace's own writing.
    """
    return _share((one.total_ms, one.expected_ms) for one in rounds)


def _share(pairs: Iterable[tuple[float, float | None]]) -> float | None:
    """What came, as a share of what was expected, of those of which something was."""
    known = [(came, expected) for came, expected in pairs if expected]
    return sum(came for came, _ in known) / sum(expected for _, expected in known) if known else None


def decisions(rounds: Iterable[Summary]) -> Counter[str]:
    """Rounds by what a policy decided, where it says so."""
    return Counter(one.decision for one in rounds if one.decision is not None)


def shapes(rounds: Sequence[Summary]) -> list[Shape]:
    """By batch size, then by number of nodes."""
    groups: dict[tuple[int, int], list[Summary]] = {}
    for one in rounds:
        groups.setdefault((one.batch_size, one.num_nodes or 0), []).append(one)
    return [_shape(groups[key]) for key in sorted(groups)]


def _shape(rounds: Sequence[Summary]) -> Shape:
    names = list(dict.fromkeys(name for one in rounds for name in one.stages_ms))
    return Shape(
        batch_size=rounds[0].batch_size,
        num_nodes=rounds[0].num_nodes,
        num_rounds=len(rounds),
        round_ms=median(one.total_ms for one in rounds),
        stages_ms={name: median(one.stages_ms.get(name, 0.0) for one in rounds) for name in names},
        tokens=tokens_per_round(rounds),
        expected_tokens=expected_per_round(rounds),
    )


def requests(rounds: Iterable[Summary]) -> list[RequestCourse]:
    """In the order in which they came."""
    found: dict[str, list[tuple[int | None, int | None]]] = {}
    for one in rounds:
        for (request_id, tokens), limit in zip(one.requests, one.node_limits, strict=True):
            nodes = [count for count in (one.num_nodes, limit) if count is not None]
            found.setdefault(request_id, []).append((tokens, min(nodes, default=None)))
    return [_course(request_id, values) for request_id, values in found.items()]


def _course(request_id: str, values: Sequence[tuple[int | None, int | None]]) -> RequestCourse:
    tokens = [count for count, _ in values if count is not None]
    nodes = [count for _, count in values if count is not None]
    return RequestCourse(
        request_id=request_id,
        num_rounds=len(values),
        tokens=sum(tokens) if len(tokens) == len(values) else None,
        least_nodes=min(nodes, default=None),
        most_nodes=max(nodes, default=None),
    )


def thinned(rounds: Sequence[Summary], most: int) -> tuple[list[dict[str, Any]], int]:
    """At most `most` points with means of as many rounds in a row as the second value says."""
    step = max(1, -(-len(rounds) // most))
    return [_point(rounds[start : start + step]) for start in range(0, len(rounds), step)], step


def _point(rounds: Sequence[Summary]) -> dict[str, Any]:
    def mean(value: Callable[[Summary], float | None]) -> float | None:
        known = [found for found in map(value, rounds) if found is not None]
        return round(sum(known) / len(known), 3) if known else None

    return {
        "round": rounds[0].number,
        "last": rounds[-1].number,
        "batch": mean(lambda one: one.batch_size),
        "nodes": mean(lambda one: one.num_nodes),
        "ms": mean(lambda one: one.total_ms),
        "expected_ms": mean(lambda one: one.expected_ms),
        "took_ms": mean(lambda one: one.took_ms),
        "tokens": _rounded(tokens_per_round(rounds)),
        "expected": _rounded(expected_per_round(rounds)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
