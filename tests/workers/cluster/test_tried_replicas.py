"""A later attempt goes where no earlier one was, as long as there is such a place."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router.request_router import RequestRouter

from workers.answers.protocol import Attempt
from workers.cluster.request_router import AttemptRouter, PrefixCacheAffinityRouter
from workers.cluster.tried_replicas import TriedReplicas

FIRST = Attempt("r", 0, (1, 2), 0, {})
SECOND = replace(FIRST, number=1)
REPLICAS = [SimpleNamespace(replica_id=name) for name in "abc"]


def pending(*args: Any) -> Any:
    return SimpleNamespace(args=list(args))


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    preferred: Sequence[Sequence[int]],
    request: Any,
    visited: Sequence[str],
    candidates: Sequence[Any] = REPLICAS,
) -> list[list[str]]:
    """Ids in the groups that are chosen when the base class prefers those replicas."""

    async def base(self: Any, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        return [[REPLICAS[index] for index in group] for group in preferred]

    monkeypatch.setattr(PrefixCacheAffinityRouter, "choose_replicas", base)
    router = object.__new__(AttemptRouter)
    router._tried = TriedReplicas(10)
    for one in visited:
        router._tried.add(FIRST, one)
    groups = asyncio.run(router.choose_replicas(list(candidates), request))
    return [[one.replica_id for one in group] for group in groups]


def test_first_attempt_goes_where_the_prefix_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [[1], [0, 2]], pending(FIRST), ["b"]) == [["b"], ["a", "c"]]


def test_second_attempt_leaves_out_the_first_ones_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [[1], [0, 1]], pending(SECOND), ["b"]) == [[], ["a"]]


def test_second_attempt_takes_any_other_if_only_the_first_ones_was_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [[1]], pending(SECOND), ["b"]) == [["a", "c"]]


def test_second_attempt_goes_back_if_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [[1]], pending(SECOND), ["b"], REPLICAS[1:2]) == [["b"]]


def test_calls_without_an_attempt_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [[1]], pending("x"), ["b"]) == [["b"]]
    assert chosen(monkeypatch, [[1]], None, ["b"]) == [["b"]]


def test_where_an_attempt_is_sent_is_remembered_before_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def base(self: Any, pending_request: Any, *, is_retry: bool = False) -> Any:
        return REPLICAS[2]

    monkeypatch.setattr(RequestRouter, "_choose_replica_for_request", base)
    router = object.__new__(AttemptRouter)
    router._tried = TriedReplicas(10)
    asyncio.run(router._choose_replica_for_request(pending(FIRST)))
    assert router._tried.before(SECOND) == {"c"}
    assert router._tried.before(FIRST) == set()


def test_oldest_requests_are_forgotten() -> None:
    visited = TriedReplicas(2)
    for name in "xyz":
        visited.add(replace(FIRST, request_id=name), "a")
    assert [visited.before(replace(SECOND, request_id=name)) for name in "xyz"] == [set(), {"a"}, {"a"}]


def test_ray_still_asks_this_way() -> None:
    """Fails when Ray renames what is overridden."""
    assert list(inspect.signature(RequestRouter._choose_replica_for_request).parameters) == [
        "self",
        "pending_request",
        "is_retry",
    ]
    assert list(inspect.signature(PrefixCacheAffinityRouter.choose_replicas).parameters) == [
        "self",
        "candidate_replicas",
        "pending_request",
    ]
