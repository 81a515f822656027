"""Readiness is asked for twice a second at most."""

from __future__ import annotations

import asyncio
from typing import Any

from workers.readiness import Readiness


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
        readiness = Readiness("d", ask)
        await asyncio.gather(*(readiness.ready_replicas() for _ in range(20)))

    asyncio.run(main())
    assert asked == ["d"]
