"""One attempt's chunks with limits on every wait, also on that for a stream to give up.

A source's stream usually tells its replica to abort when it is cancelled or closed, and that replica may be the one
that hangs. Cancelling is therefore a request with a time limit here; a stream that does not react is abandoned, and
what it still sends is dropped as an old attempt's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

from workers.answers.protocol import Busy, Refused, TokenChunk, WorkerLost


class ChunkStream:
    """Reads a source's stream.

    Args:
        chunks: what the source returned.
        close_timeout_s: how long it may take to stop.
    """

    def __init__(self, chunks: AsyncIterator[TokenChunk], close_timeout_s: float) -> None:
        self._chunks = chunks
        self._close_timeout_s = close_timeout_s
        self._abandoned = False

    async def next(self, timeout_s: float) -> TokenChunk:
        """The next chunk.

        Raises:
            TimeoutError: nothing came in time; the stream was stopped.
            WorkerLost: the stream just ended, or said so.
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
        """Stop the replica, if it still runs."""
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
        # Closing a stream that still runs is an error, so it must not be tried after this.
        self._abandoned = True
        await asyncio.wait({task}, timeout=self._close_timeout_s)
        self._abandoned = not task.done()


async def _next(chunks: AsyncIterator[TokenChunk]) -> TokenChunk:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        raise WorkerLost("the stream must end with a finish reason, but just ended.") from None


async def _ended(closing: Awaitable[None]) -> None:
    # It is over then, which is what was asked for.
    with suppress(WorkerLost, Busy, Refused):
        await closing


def _read_outcome(task: asyncio.Future[TokenChunk] | asyncio.Future[None]) -> None:
    """An error of a stream that nobody waits for any more is not worth a line in the log."""
    if not task.cancelled():
        task.exception()
