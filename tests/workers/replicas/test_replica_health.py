"""A replica is alive if a token comes out when asked; refusals alone are no reason to end it, time is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from workers.answers.protocol import Attempt, Refused, TokenChunk
from workers.replicas.replica import DDTreeServer
from workers.replicas.supervision import TokenClock

pytestmark = pytest.mark.sglang


class Replica(DDTreeServer):  # type: ignore[misc]
    """Without an engine: each question gets the script's next answer, the last one again and again."""

    def __init__(self, script: list[Exception | None], timeout_s: float) -> None:
        self._config = SimpleNamespace(startup_timeout_s=timeout_s, health_check_timeout_s=timeout_s)
        self._progress = TokenClock(fresh_s=60)
        self.script, self.asked, self.ended = script, 0, ""
        self._process: Any = SimpleNamespace(end=self._end, retire=lambda: None)

    def _end(self, reason: str) -> None:
        self.ended = reason

    async def _engine_chunks(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        error = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        if error is not None:
            raise error
        yield TokenChunk(0, 0, (1,))

    async def __del__(self) -> None:
        """There is no deployment, so no budget to tell."""


@pytest.mark.parametrize("error", [Refused("the queue is full", 503), RuntimeError("not up yet")])
def test_engine_that_refuses_for_a_while_lives(error: Exception) -> None:
    replica = Replica([error, None], timeout_s=60)
    asyncio.run(replica.check_health())
    assert (replica.asked, replica.ended) == (2, "")


def test_others_tokens_show_that_a_full_engine_lives() -> None:
    replica = Replica([Refused("the queue is full", 503)], timeout_s=60)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, replica._progress.token)
        await replica.check_health()

    asyncio.run(main())
    assert (replica.asked, replica.ended) == (1, "")


def test_engine_that_always_refuses_is_ended() -> None:
    replica = Replica([Refused("broken", 500)], timeout_s=0.7)
    asyncio.run(replica.check_health())
    assert replica.ended.startswith("no token within")
