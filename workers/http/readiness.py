"""How many replicas make tokens: those that Ray Serve calls running (one does after its first health check, which makes
a token) and whose actor is alive.

Serve learns of a death by its next health check, up to `health_check_period_s` later; Ray knows it at once, so both
are asked. That takes milliseconds and is done at most every half second for all requests together.
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
    """Counts the replicas of one deployment that make tokens.

    Args:
        deployment_id: Serve's id of it.
        ask: what counts; Serve's controller and Ray unless given.
        clock: seconds, never backwards.
        patience_s: for an answer; without one the last number stands, 0 before the first.
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
        """The number, not older than half a second."""
        async with self._lock:
            if self._asked_at is None or self._clock() - self._asked_at > FRESH_S:
                try:
                    self._count = await asyncio.wait_for(self._ask(self._deployment_id), self._patience_s)
                except Exception as error:  # noqa: BLE001  (whatever Serve or Ray raises while it restarts)
                    # A controller that is restarting: replicas answer without it, so the last number stands.
                    logger.warning("Serve's controller does not say what runs: %s: %s", type(error).__name__, error)
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
    """Replicas of a deployment that run and live.

    Args:
        details: as `ray.serve.schema.ServeInstanceDetails` describes; the one answer of Serve's that names actors.
        deployment_id: with `app_name` and `name`.
        living: names of the living actors in Serve's namespace.
    """
    application = details["applications"].get(deployment_id.app_name)
    deployment = application and application["deployments"].get(deployment_id.name)
    replicas = deployment["replicas"] if deployment else ()
    return sum(one["state"] == "RUNNING" and one["actor_name"] in living for one in replicas)
