"""A replica without an engine: each token follows from its place in the answer, so replicas go on alike."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator

from ray import serve
from ray.serve.config import RequestRouterConfig

from tests.e2e_ray.toy_folder import ToyFolder
from workers.answers.protocol import Attempt, TokenChunk
from workers.cluster.loopback import bind_replica_to_loopback

# Tokens of SmolLM2 that are words or parts of words, one unlike the other.
FIRST_TOKEN, NUM_TOKENS = 2000, 500


def expected_tokens(num_tokens: int) -> list[int]:
    """What a fault-free answer holds."""
    return [FIRST_TOKEN + index * 7 % NUM_TOKENS for index in range(num_tokens)]


@serve.deployment(
    name="replica",
    num_replicas=2,
    max_ongoing_requests=3,
    max_queued_requests=2,
    health_check_period_s=1,
    request_router_config=RequestRouterConfig(request_router_class="tests.e2e_ray.toy_router:ToyRouter"),
    ray_actor_options={"num_cpus": 0.1},
)
class ToyReplica:
    """Has what the ingress asks of `DDTreeServer`; notes who works on what, and waits where its folder says so."""

    def __init__(self, token_s: float, folder: ToyFolder) -> None:
        bind_replica_to_loopback()
        self._token_s, self._folder = token_s, folder
        while folder.is_closed():
            time.sleep(0.1)

    async def generate_tokens(self, attempt: Attempt) -> AsyncGenerator[TokenChunk, None]:
        self._note(attempt, "started")
        try:
            yield TokenChunk(attempt.number, attempt.num_emitted, ())
            num_new = attempt.sampling["max_new_tokens"]
            answer = expected_tokens(attempt.num_emitted + num_new)
            for index in range(attempt.num_emitted, len(answer)):
                await asyncio.sleep(self._token_s)
                while self._folder.is_held(attempt.number, index):
                    await asyncio.sleep(0.05)
                done = index + 1 - attempt.num_emitted
                meta = {"prompt_tokens": len(attempt.input_ids), "completion_tokens": done}
                reason = {"type": "length", "length": num_new} if done == num_new else None
                yield TokenChunk(attempt.number, index, (answer[index],), finish_reason=reason, meta=meta)
        except (asyncio.CancelledError, GeneratorExit):
            self._note(attempt, "cancelled")
            raise

    def _note(self, attempt: Attempt, what: str) -> None:
        self._folder.note(what=what, pid=os.getpid(), request=attempt.request_id, attempt=attempt.number)
