"""How many replicas make tokens, as Ray Serve knows it: a replica runs after its first health check, which makes one.

Asking Serve's controller takes milliseconds and is done at most every half second for all requests together; the loss
of a replica is in the next answer, since Serve watches its actors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

FRESH_S = 0.5


class Readiness:
    """Counts the running replicas of one deployment.

    Args:
        deployment_id: Serve's id of it.
        ask: what counts; Serve's controller unless given.
        clock: seconds, never backwards.
    """

    def __init__(
        self,
        deployment_id: Any,
        ask: Callable[[Any], Awaitable[int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deployment_id = deployment_id
        self._ask = ask or _running_replicas
        self._clock = clock
        self._asked_at: float | None = None
        self._count = 0
        self._lock = asyncio.Lock()

    async def ready_replicas(self) -> int:
        """The number, not older than half a second."""
        async with self._lock:
            if self._asked_at is None or self._clock() - self._asked_at > FRESH_S:
                self._count = await self._ask(self._deployment_id)
                self._asked_at = self._clock()
            return self._count


async def _running_replicas(deployment_id: Any) -> int:
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    application = status.applications.get(deployment_id.app_name)
    if application is None or deployment_id.name not in application.deployments:
        return 0
    states: dict[Any, int] = application.deployments[deployment_id.name].replica_states
    return int(states.get("RUNNING", 0))
