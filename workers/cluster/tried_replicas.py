"""A policy for Ray Serve's request routers: a resumed answer does not return to a replica that it was at.

Serve drops a replica that died. A replica that hangs stays in Serve's list until its health check fails, and it holds
the longest prefix of the answer that it broke off. Without this policy every resumption would return to it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from workers.answers.protocol import Attempt

# How many answers one ingress remembers the replicas of; far more than run at a time.
MAX_REMEMBERED = 1 << 16


class TriedReplicas:
    """The replicas of each of the newest `limit` requests."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._replicas: OrderedDict[str, list[tuple[int, Any]]] = OrderedDict()

    def add(self, attempt: Attempt | None, replica: Any) -> None:
        """Remember that the attempt goes to that replica."""
        if attempt is None:
            return
        self._replicas.setdefault(attempt.request_id, []).append((attempt.number, replica))
        self._replicas.move_to_end(attempt.request_id)
        if len(self._replicas) > self._limit:
            self._replicas.popitem(last=False)

    def before(self, attempt: Attempt | None) -> set[Any]:
        """Replicas of the request's earlier attempts."""
        if attempt is None:
            return set()
        visits = self._replicas.get(attempt.request_id, [])
        return {replica for number, replica in visits if number < attempt.number}


class AvoidsTriedReplicas:
    """A mixin that stands before a `ray.serve.request_router.RequestRouter` in a class's bases.

    It finds the `Attempt` among a call's arguments. Ray calls all three methods by these names.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve once."""
        super().initialize_state(**kwargs)  # type: ignore[misc]
        self._tried = TriedReplicas()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Groups of replicas, the best first: the base's choice without tried ones, else any untried, else any."""
        groups: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)  # type: ignore[misc]
        tried = self._tried.before(attempt_of(pending_request))
        if not tried:
            return groups
        fresh = [[one for one in group if one.replica_id not in tried] for group in groups]
        if any(fresh):
            return fresh
        return [[one for one in candidate_replicas if one.replica_id not in tried] or list(candidate_replicas)]

    async def _choose_replica_for_request(self, pending_request: Any, *, is_retry: bool = False) -> Any:
        # Remembered before it is sent: a replica that hangs never confirms that it has the request.
        replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)  # type: ignore[misc]
        self._tried.add(attempt_of(pending_request), replica.replica_id)
        return replica


def attempt_of(pending_request: Any) -> Attempt | None:
    """The attempt that Serve is asked to send; None for calls without one."""
    args = pending_request.args if pending_request is not None else ()
    return next((one for one in args or () if isinstance(one, Attempt)), None)
