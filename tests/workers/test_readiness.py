"""Readiness is asked for twice a second at most."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID

from workers.readiness import Readiness, count_living


def test_count_is_shared_for_half_a_second_then_asked_again() -> None:
    now, answers = [0.0], iter([2, 0])

    async def ask(deployment: Any) -> int:
        return next(answers)

    async def main() -> list[int]:
        readiness = Readiness("d", ask, clock=lambda: now[0])
        seen = [await readiness.ready_replicas(), await readiness.ready_replicas()]
        now[0] = 0.6
        return [*seen, await readiness.ready_replicas()]

    assert asyncio.run(main()) == [2, 2, 0]


def test_many_requests_at_once_ask_once() -> None:
    asked = []

    async def ask(deployment: Any) -> int:
        asked.append(deployment)
        await asyncio.sleep(0)
        return 1

    async def main() -> None:
        readiness = Readiness("d", ask, clock=lambda: 0.0)
        await asyncio.gather(*(readiness.ready_replicas() for _ in range(20)))

    asyncio.run(main())
    assert asked == ["d"]


def details(*states: tuple[str, str]) -> dict[str, Any]:
    replicas = [{"state": state, "actor_name": name} for state, name in states]
    return {"applications": {"app": {"deployments": {"replica": {"replicas": replicas}}}}}


@pytest.mark.parametrize(
    ("states", "living", "count"),
    [
        ((("RUNNING", "a"), ("RUNNING", "b")), {"a", "b"}, 2),
        # Dead, and Serve has not noticed.
        ((("RUNNING", "a"), ("RUNNING", "b")), {"b"}, 1),
        # Serve has: the new one has an actor, and no token yet.
        ((("STARTING", "c"), ("RUNNING", "b")), {"b", "c"}, 1),
        ((), {"b"}, 0),
    ],
)
def test_replica_counts_if_serve_runs_it_and_ray_knows_it(
    states: tuple[tuple[str, str], ...], living: set[str], count: int
) -> None:
    assert count_living(details(*states), DeploymentID("replica", "app"), living) == count


def test_unknown_application_or_deployment_has_no_replicas() -> None:
    assert count_living({"applications": {}}, DeploymentID("replica", "app"), set()) == 0
    assert count_living(details(), DeploymentID("other", "app"), set()) == 0
