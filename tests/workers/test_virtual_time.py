"""The loop that the router's tests run in: timers in order, at once, and no test that hangs."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.workers import virtual_time


def test_timers_fire_in_order_at_their_time_however_long_the_code_between_takes() -> None:
    seen: list[tuple[str, float]] = []

    async def wait(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        time.sleep(0.01)
        seen.append((name, virtual_time.clock()))

    async def body() -> None:
        await asyncio.gather(wait("long", 10.0), wait("short", 0.001), wait("none", 0.0))
        done, _ = await asyncio.wait({asyncio.ensure_future(asyncio.sleep(0.2))}, timeout=0.1)
        assert not done

    virtual_time.run(body)
    assert seen == [("none", 0.0), ("short", pytest.approx(0.001)), ("long", pytest.approx(10.0))]


def test_a_test_that_would_hang_fails() -> None:
    async def waits_long() -> None:
        await asyncio.sleep(21.0)

    async def turns() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        virtual_time.run(waits_long)
    with pytest.raises(RuntimeError, match="no time has passed"):
        virtual_time.run(turns)
    # `run` keeps a timer of its own, so this one goes without.
    with (
        pytest.raises(RuntimeError, match="nothing is left that could wake it"),
        asyncio.Runner(loop_factory=virtual_time.VirtualTimeLoop) as runner,
    ):
        runner.run(asyncio.Event().wait())
