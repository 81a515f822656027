"""One attempt's chunks, with a time limit on every wait, also on the wait for a stream to stop.

A source's stream usually tells its replica to abort when it is cancelled or closed, and that replica may hang. So
cancelling has a time limit as well. A stream that does not react is abandoned; what it still sends is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

from workers.answers.protocol import Busy, Refused, TokenChunk, WorkerLost


class ChunkStream:
    """Reads a source's stream.

    Args:
        chunks: the source's iterator.
        close_timeout_s: seconds that it may take to stop.
    """

    def __init__(self, chunks: AsyncIterator[TokenChunk], close_timeout_s: float) -> None:
        self._chunks = chunks
        self._close_timeout_s = close_timeout_s
        self._abandoned = False

    async def next(self, timeout_s: float) -> TokenChunk:
        """The next chunk.

        Raises:
            TimeoutError: nothing came within `timeout_s` seconds; the stream was stopped.
            WorkerLost: raised by the stream, or the stream ended without a finish reason.
        """
        task = asyncio.ensure_future(_next(self._chunks))
        try:
            await asyncio.wait({task}, timeout=max(0.0, timeout_s))
            if task.done():
                return task.result()
        finally:
            await self._stop(task)
        raise TimeoutError

    async def close(self) -> None:
        """Stop the stream, and with it the replica's work on the attempt."""
        close = getattr(self._chunks, "aclose", None)
        if close is None or self._abandoned:
            return
        task = asyncio.ensure_future(_ended(close()))
        task.add_done_callback(_read_outcome)
        try:
            await asyncio.wait({task}, timeout=self._close_timeout_s)
        finally:
            await self._stop(task)

    async def _stop(self, task: asyncio.Future[TokenChunk] | asyncio.Future[None]) -> None:
        if task.done():
            return
        task.cancel()
        task.add_done_callback(_read_outcome)
        # Closing a generator while it still runs raises, so `close` must not try it after this.
        self._abandoned = True
        await asyncio.wait({task}, timeout=self._close_timeout_s)
        self._abandoned = not task.done()


async def _next(chunks: AsyncIterator[TokenChunk]) -> TokenChunk:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        raise WorkerLost("the stream must end with a finish reason, but it ended without one.") from None


async def _ended(closing: Awaitable[None]) -> None:
    # With any of these errors the stream is over, which is what was asked for.
    with suppress(WorkerLost, Busy, Refused):
        await closing


def _read_outcome(task: asyncio.Future[TokenChunk] | asyncio.Future[None]) -> None:
    """Mark the error of an abandoned stream as seen; asyncio would log it otherwise."""
    if not task.cancelled():
        task.exception()
