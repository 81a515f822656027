"""Counts the replicas that are ready: Ray Serve calls them running, and their actor is alive.

A replica runs after its first health check, which makes a token. Serve notices a death at its next health check, up to
`health_check_period_s` later; Ray notices at once, so both are asked. That takes milliseconds and is done at most
every half second for all requests together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)

FRESH_S = 0.5


class Readiness:
    """Counts the ready replicas of one deployment.

    Args:
        deployment_id: Serve's id of the deployment.
        ask: counts them; asks Serve's controller and Ray unless given.
        clock: seconds, never backwards.
        patience_s: seconds to wait for an answer; without one the last number stands, 0 before the first.
    """

    def __init__(
        self,
        deployment_id: Any,
        ask: Callable[[Any], Awaitable[int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 5.0,
    ) -> None:
        self._deployment_id = deployment_id
        self._ask = ask or _living_replicas
        self._clock = clock
        self._patience_s = patience_s
        self._asked_at: float | None = None
        self._count = 0
        self._lock = asyncio.Lock()

    async def ready_replicas(self) -> int:
        """The number of ready replicas, at most half a second old."""
        async with self._lock:
            if self._asked_at is None or self._clock() - self._asked_at > FRESH_S:
                try:
                    self._count = await asyncio.wait_for(self._ask(self._deployment_id), self._patience_s)
                except Exception as error:  # noqa: BLE001  (Serve and Ray raise many types while they restart)
                    # A controller that is restarting: replicas answer without it, so the last number stands.
                    logger.warning(
                        "the number of ready replicas may be old: Serve's controller or Ray failed with %s: %s",
                        type(error).__name__,
                        error,
                    )
                self._asked_at = self._clock()
            return self._count


async def _living_replicas(deployment_id: Any) -> int:
    import ray
    from ray.serve._private.constants import SERVE_NAMESPACE
    from ray.serve.context import _get_global_client

    controller = _get_global_client()._controller
    details = await controller.get_serve_instance_details.remote()
    living = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    return count_living(details, deployment_id, {one["name"] for one in living if one["namespace"] == SERVE_NAMESPACE})


def count_living(details: dict[str, Any], deployment_id: Any, living: set[str]) -> int:
    """Number of a deployment's replicas that Serve calls running and whose actor lives.

    Args:
        details: a `ray.serve.schema.ServeInstanceDetails` as a dict; no other answer of Serve names the actors.
        deployment_id: has `app_name` and `name`.
        living: names of the living actors in Serve's namespace.
    """
    application = details["applications"].get(deployment_id.app_name)
    deployment = application and application["deployments"].get(deployment_id.name)
    replicas = deployment["replicas"] if deployment else ()
    return sum(one["state"] == "RUNNING" and one["actor_name"] in living for one in replicas)
