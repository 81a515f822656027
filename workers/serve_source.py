"""Attempts on a Ray Serve deployment: what Serve raises, in the words of `workers.protocol`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from workers.protocol import Attempt, Busy, Refused, TokenChunk, WorkerLost


class ServeSource:
    """A `TokenSource` over a handle to `DDTreeServer`; Serve's request router chooses the replica of an attempt."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)

    async def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        """See `TokenSource`; Serve cancels the replica's generator when this one is closed."""
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

        chunks = self._handle.generate_tokens.remote(attempt)
        finished = False
        try:
            async for chunk in chunks:
                finished = chunk.finish_reason is not None
                yield chunk
            finished = True
        except BackPressureError as error:
            finished = True
            raise Busy(str(error)) from error
        except (ActorDiedError, ActorUnavailableError, RayActorError, ReplicaUnavailableError) as error:
            finished = True
            raise WorkerLost(f"{type(error).__name__}: {error}") from error
        except RayTaskError as error:
            finished = True
            raise _as_protocol_error(error) from error
        finally:
            if not finished:
                chunks.cancel()


def _as_protocol_error(error: Any) -> Exception:
    """Ray wraps what a replica raises; `Refused` is for the client, anything else means that the replica is broken."""
    cause = error.cause
    if isinstance(cause, Refused):
        return cause
    return WorkerLost(f"{type(cause).__name__}: {cause}")
