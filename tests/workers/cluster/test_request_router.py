"""A router of prefixes goes on by load where its tree is lost; the tree is the router's own, not a detached one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

import workers.cluster.request_router as routing
from workers.cluster.request_router import AttemptRouter, PrefixCacheAffinityRouter
from workers.cluster.tried_replicas import TriedReplicas

BY_LOAD = [[SimpleNamespace(replica_id="a")]]


def router() -> Any:
    one = object.__new__(AttemptRouter)
    one._tried = TriedReplicas(10)
    return one


def raising(error: Exception) -> Any:
    def method(self: Any, *args: Any) -> None:
        raise error

    return method


@pytest.mark.parametrize("error", [ActorDiedError(), KeyError("a replica that is gone")])
def test_lost_tree_means_the_least_loaded(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def lost(self: Any, candidate_replicas: list[Any], pending_request: Any = None) -> Any:
        raise error

    async def by_load(self: Any, candidate_replicas: list[Any], pending_request: Any = None) -> Any:
        return BY_LOAD

    monkeypatch.setattr(PrefixCacheAffinityRouter, "choose_replicas", lost)
    monkeypatch.setattr(PowerOfTwoChoicesRequestRouter, "choose_replicas", by_load)
    assert asyncio.run(router().choose_replicas([], None)) == BY_LOAD


@pytest.mark.parametrize(
    ("method", "args"),
    [("update_replicas", ([],)), ("on_replica_actor_died", ("a",)), ("on_request_routed", (None, "a", None))],
)
def test_lost_tree_stops_nothing_else(monkeypatch: pytest.MonkeyPatch, method: str, args: tuple[Any, ...]) -> None:
    # The names are Ray's own.
    assert method in vars(PrefixCacheAffinityRouter)
    monkeypatch.setattr(PrefixCacheAffinityRouter, method, raising(ActorDiedError()))
    getattr(router(), method)(*args)
    monkeypatch.setattr(PrefixCacheAffinityRouter, method, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        getattr(router(), method)(*args)


def test_stock_router_takes_the_tree_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock router makes a detached one, which outlives the application."""
    monkeypatch.setattr(routing, "tree_on_this_node", lambda: "ours")
    one = object.__new__(AttemptRouter)
    one.initialize_state(imbalanced_threshold=8, do_eviction=True)
    assert one._tree_actor == "ours"
    assert one._imbalanced_threshold == 8
