"""Which replica an attempt goes to: one that it was not at, there the longest prefix, then the least loaded."""

from __future__ import annotations

from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter

from workers.tried_replicas import AvoidsTriedReplicas


class ResumptionRouter(AvoidsTriedReplicas, PrefixCacheAffinityRouter):  # type: ignore[misc]
    """`ray.serve.llm`'s prefix router, for attempts that may be resumptions."""
