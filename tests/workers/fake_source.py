"""Replicas by script: each attempt dies, hangs, is slow or full as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.workers.fake_engine import FakeEngine
from workers.answers.protocol import Attempt, Busy, TokenChunk

ANSWER = tuple(range(50, 70))


@dataclass
class Act:
    """What one attempt does: wait for room, some chunks, then an error, silence, or the stream's end; or all of it."""

    num_chunks: int | None = None
    error: Exception | None = None
    hangs: bool = False
    pause_s: float = 0.0
    no_room_s: float = 0.0


@dataclass
class ScriptedSource:
    """Attempts in the order of the script; later ones do all."""

    script: list[Act]
    engine: FakeEngine = field(default_factory=lambda: FakeEngine(ANSWER))
    attempts: list[Attempt] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)  # numbers of the attempts that were stopped before their end

    async def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        act = self.script[len(self.attempts)] if len(self.attempts) < len(self.script) else Act()
        self.attempts.append(attempt)
        ended = False
        try:
            await asyncio.sleep(act.no_room_s)
            if not isinstance(act.error, Busy):
                yield TokenChunk(attempt.number, attempt.num_emitted, ())
            for chunk in self.engine.run(attempt)[: act.num_chunks]:
                await asyncio.sleep(act.pause_s)
                yield chunk
            if act.error is not None:
                ended = True
                raise act.error
            if act.hangs:
                await asyncio.Event().wait()
            ended = True
        finally:
            if not ended:
                self.closed.append(attempt.number)
