"""The ingress's policy over Serve's own router: importing `ray.serve.llm` would make each toy replica slow to start."""

from __future__ import annotations

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

from workers.cluster.tried_replicas import AvoidsTriedReplicas


class ToyRouter(AvoidsTriedReplicas, PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """See the module's docstring."""
