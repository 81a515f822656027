"""Chooses the replica of an attempt: not one that the answer was at before, then the longest prefix, then least load.

`ray.serve.llm`'s prefix router keeps its prefixes in one detached actor on any node. That actor outlives the
application, and if its node is lost every later choice raises, which Serve logs and never retries. Here each router has
an actor of its own, on its own node, that ends with the router. If the actor fails, requests go by load.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTreeActor
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.cluster.tried_replicas import AvoidsTriedReplicas

logger = logging.getLogger(__name__)


class FallbackPrefixRouter(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """The stock prefix router, which falls back to routing by load when its prefix tree fails."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve once, with `request_router_kwargs`."""
        super().initialize_state(**{"tree_actor": tree_on_this_node(), **kwargs})

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Groups of replicas, the best group first."""
        groups: list[list[Any]]
        with _falling_back_to_load():
            groups = await super().choose_replicas(candidate_replicas, pending_request)
            return groups
        groups = await PowerOfTwoChoicesRequestRouter.choose_replicas(self, candidate_replicas, pending_request)
        return groups

    def update_replicas(self, replicas: list[Any]) -> None:
        """The list of replicas changed. The stock method updates the tree as its last step."""
        with _falling_back_to_load():
            super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """A replica died. The stock method removes it from the tree as its last step."""
        with _falling_back_to_load():
            super().on_replica_actor_died(replica_id)

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """The replica has the request. The stock method adds its prompt to the tree."""
        with _falling_back_to_load():
            super().on_request_routed(pending_request, replica_id, result)


class AttemptRouter(AvoidsTriedReplicas, FallbackPrefixRouter):  # type: ignore[misc]
    """The router of the deployment: a resumed answer avoids the replicas that it was at."""


def tree_on_this_node() -> Any:
    """A prefix tree for one router: it ends with this process, and restarts empty if it dies before."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return PrefixTreeActor.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@contextmanager
def _falling_back_to_load() -> Iterator[None]:
    # KeyError: the tree names a replica that is gone.
    try:
        yield
    except (ray.exceptions.RayError, KeyError) as error:
        logger.warning("the prefix tree failed (%s: %s); routing by load", type(error).__name__, error)
