"""Replicas follow the requests that run, and one that is taken away finishes its answers first."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from deploy.local.patience import SLOW_START_S
from tests.e2e_ray.toy_folder import ToyFolder
from tests.e2e_ray.toy_replica import ToyReplica, expected_tokens
from workers.answers.protocol import TokenRequest
from workers.answers.resume import ResumableAnswer
from workers.answers.retry import RetryingGenerator, RetryPolicy
from workers.cluster.serve_source import ServeSource
from workers.http.readiness import Readiness

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 4,
    "metrics_interval_s": 0.2,
    "look_back_period_s": 1,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
}
# Tokens of an answer of the crowd, where answers are held up, which is behind these, and of the last ones.
NUM_CROWD, HELD_AT, NUM_LAST = 20, 30, 40


async def answer(generator: RetryingGenerator, name: str, num_tokens: int) -> list[int]:
    request = TokenRequest(name, (1, 2, 3), {"max_new_tokens": num_tokens, "temperature": 0.0})
    return [token async for part in generator.generate(ResumableAnswer(request)) for token in part.token_ids]


async def wait_until(readiness: Readiness, replicas: int) -> None:
    deadline = time.monotonic() + SLOW_START_S
    while (now := await readiness.ready_replicas()) != replicas:
        assert time.monotonic() < deadline, f"{now} replicas, {replicas} were to be"
        await asyncio.sleep(0.2)


def who_answers(folder: ToyFolder) -> dict[str, int]:
    """The process that works on each request."""
    return {note["request"]: note["pid"] for note in folder.started()}


async def one_answer_each(generator: RetryingGenerator, folder: ToyFolder) -> list[asyncio.Task[list[int]]]:
    """A long answer on each of the two replicas; Serve's router chooses between them, partly by chance."""
    kept: dict[int, asyncio.Task[list[int]]] = {}
    deadline = time.monotonic() + SLOW_START_S
    number = 0
    while len(kept) < 2:
        assert time.monotonic() < deadline, f"{number} requests, none on one of the two replicas"
        name = f"last-{number}"
        task = asyncio.create_task(answer(generator, name, NUM_LAST))
        while name not in (by_name := who_answers(folder)):
            assert time.monotonic() < deadline, f"{name} has not begun"
            await asyncio.sleep(0.05)
        if kept.setdefault(by_name[name], task) is not task:
            task.cancel()
        number += 1
    return list(kept.values())


async def check(handle: Any, folder: ToyFolder) -> RetryingGenerator:
    patient = RetryPolicy(first_token_timeout_s=600.0, stall_timeout_s=600.0)
    generator, readiness = RetryingGenerator(ServeSource(handle), patient), Readiness(handle.deployment_id)
    assert await readiness.ready_replicas() == 1
    crowding = True

    async def crowd(name: str) -> None:
        while crowding:
            assert await answer(generator, name, NUM_CROWD) == expected_tokens(NUM_CROWD)

    crowds = [asyncio.create_task(crowd(f"crowd-{number}")) for number in range(6)]
    await wait_until(readiness, 2)
    with folder.held(HELD_AT):
        # One replica would be enough for these.
        last = await one_answer_each(generator, folder)
        crowding = False
        await asyncio.gather(*crowds)
        await wait_until(readiness, 1)
        assert not any(one.done() for one in last), "no answer was left to the replica that leaves"
    assert await asyncio.gather(*last) == [expected_tokens(NUM_LAST)] * 2
    return generator


def test_replicas_come_with_the_load_and_leave_without_breaking_an_answer(http_port: int, tmp_path: Path) -> None:
    from ray import serve

    folder = ToyFolder(tmp_path)
    scaled = ToyReplica.options(
        num_replicas="auto",
        autoscaling_config=AUTOSCALING,
        max_ongoing_requests=12,
        graceful_shutdown_timeout_s=600,
        max_queued_requests=-1,
    )
    handle = serve.run(scaled.bind(0.05, folder), name="scaled", route_prefix=None)
    generator = asyncio.run(check(handle, folder))
    serve.delete("scaled")
    assert generator.counters.lost == 0
