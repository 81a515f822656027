"""The actor that keeps a deployment's `RestartBudget`; Serve starts it with the deployment and ends it with that."""

from __future__ import annotations

import ray

from workers.replicas.restart_budget import RestartBudget


@ray.remote
class RestartLedger:
    """One per deployment; replicas ask it before they load a model."""

    def __init__(self, expected: int, budget: int, window_s: float) -> None:
        self._budget = RestartBudget(expected, budget, window_s)

    def start(self) -> float:
        """See `RestartBudget.start`."""
        return self._budget.start()

    def retired(self) -> None:
        """See `RestartBudget.retired`."""
        self._budget.retired()
