"""Runs attempts on a Ray Serve deployment, and translates what Serve raises into `workers.answers.protocol`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from workers.answers.protocol import Attempt, Busy, Refused, TokenChunk, WorkerLost


class ServeSource:
    """A `TokenSource` over a handle to `DDTreeServer`; Serve's request router chooses the replica of an attempt.

    If a replica dies before it accepts an attempt, Serve itself sends the attempt, with its number, to another
    (`ray/serve/_private/router.py`, `route_and_send_request`). Nothing is lost then; a later death is a `WorkerLost`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)

    async def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        """See `TokenSource`; Serve cancels the replica's generator when this one is closed."""
        chunks = self._handle.generate_tokens.remote(attempt)
        ended = False
        try:
            async for chunk in chunks:
                ended = chunk.finish_reason is not None
                yield chunk
        except Exception as error:
            ended = True
            known = _as_protocol_error(error)
            if known is None:
                raise
            raise known from error
        finally:
            if not ended:
                chunks.cancel()


def _as_protocol_error(error: Exception) -> Exception | None:
    """The protocol's error for what Serve raised; None for an error that no replica caused."""
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, BackPressureError):
        return Busy(str(error))
    if isinstance(error, TaskCancelledError):
        return None
    # Ray wraps what a replica raises. `Refused` is for the client; anything else means that the replica is broken.
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, Refused):
        return cause
    # Beside deaths of actors: a kill by the memory monitor is an OutOfMemoryError, a lost node a NodeDiedError.
    if isinstance(error, (RayError, RayServeException)):
        return WorkerLost(f"{type(cause).__name__}: {cause}")
    return None
