"""Readiness is asked for twice a second at most."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID

from workers.http.readiness import Readiness, count_living


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


@pytest.mark.parametrize("hangs", [True, False])
def test_controller_that_says_nothing_leaves_the_last_count(hangs: bool) -> None:
    answers = iter([2, None, 1])
    now = [0.0]

    async def ask(deployment: Any) -> int:
        if (count := next(answers)) is not None:
            return count
        if hangs:
            await asyncio.Event().wait()
        raise RuntimeError("restarting")

    async def main() -> list[int]:
        readiness = Readiness("d", ask, clock=lambda: now[0], patience_s=0.01 if hangs else 60)
        seen = []
        for _ in range(3):
            seen.append(await readiness.ready_replicas())
            now[0] += 1
        return seen

    assert asyncio.run(main()) == [2, 2, 1]


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
