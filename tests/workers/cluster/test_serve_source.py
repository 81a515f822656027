"""What Ray Serve raises, in the protocol's words; that leaving early cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from workers.answers.protocol import Attempt, Busy, Refused, TokenChunk, WorkerLost
from workers.cluster.serve_source import ServeSource

ATTEMPT = Attempt("r", 0, (1, 2), 0, {})


class Response:
    """A stream of Serve's: some chunks, then an error or nothing."""

    def __init__(self, chunks: list[TokenChunk], error: Exception | None) -> None:
        self.chunks, self.error, self.cancelled = chunks, error, False

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        for chunk in self.chunks:
            yield chunk
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled = True


def source(response: Response) -> ServeSource:
    streaming = SimpleNamespace(generate_tokens=SimpleNamespace(remote=lambda attempt: response))
    return ServeSource(SimpleNamespace(options=lambda stream: streaming))


async def drain(stream: AsyncIterator[TokenChunk]) -> list[TokenChunk]:
    return [chunk async for chunk in stream]


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate_tokens", "traceback", cause)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ActorDiedError(), WorkerLost),
        (ActorUnavailableError("no", None), WorkerLost),
        # What the memory monitor's kill of an actor looks like.
        (OutOfMemoryError("killed"), WorkerLost),
        (NodeDiedError("gone"), WorkerLost),
        (RaySystemError("no"), WorkerLost),
        (RayServeException("no"), WorkerLost),
        (DeploymentUnavailableError(DeploymentID(name="replica", app_name="a")), WorkerLost),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), Busy),
        (task_error(Refused("no penalties", 400)), Refused),
        (task_error(RuntimeError("broken")), WorkerLost),
    ],
)
def test_serves_errors_become_the_protocols(raised: Exception, expected: type[Exception]) -> None:
    response = Response([TokenChunk(0, 0, (5,))], raised)
    with pytest.raises(expected):
        asyncio.run(drain(source(response).stream(ATTEMPT)))
    assert not response.cancelled


@pytest.mark.parametrize("error", [ZeroDivisionError(), TaskCancelledError()])
def test_error_that_is_no_replicas_doing_stays_itself(error: Exception) -> None:
    with pytest.raises(type(error)):
        asyncio.run(drain(source(Response([], error)).stream(ATTEMPT)))


def test_refusal_keeps_status_and_message_over_rays_pickle() -> None:
    import cloudpickle

    refusal = cloudpickle.loads(cloudpickle.dumps(Refused("no penalties", 422)))
    assert (str(refusal), refusal.status) == ("no penalties", 422)


def test_stream_that_is_left_early_is_cancelled_at_the_replica() -> None:
    response = Response([TokenChunk(0, 0, (5,)), TokenChunk(0, 1, (6,))], None)

    async def leave() -> None:
        stream: Any = source(response).stream(ATTEMPT)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert response.cancelled


def test_finished_stream_is_not_cancelled() -> None:
    response = Response([TokenChunk(0, 0, (5,), finish_reason={"type": "length"})], None)
    assert len(asyncio.run(drain(source(response).stream(ATTEMPT)))) == 1
    assert not response.cancelled
