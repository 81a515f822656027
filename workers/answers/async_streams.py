"""Waits for several answers at once, and notices a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Items of all streams as they come. An error in one stream closes all of them, and so does closing this one."""
    tasks = {asyncio.ensure_future(_next(stream)): stream for stream in streams}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for stream, item in [(tasks.pop(task), task.result()) for task in done]:
                if item is not None:
                    yield item[0]
                    tasks[asyncio.ensure_future(_next(stream))] = stream
    finally:
        await _cancel(tasks)
        for stream in streams:
            await stream.aclose()


async def gathered(calls: Iterable[Coroutine[Any, Any, Item]]) -> list[Item]:
    """Results of all calls, in order. An error in one cancels the others, which `asyncio.gather` alone does not."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancel(tasks)


async def while_connected(
    waiting: Awaitable[Item], is_disconnected: Callable[[], Awaitable[bool]] | None, poll_s: float
) -> Item:
    """Wait for a result, and ask every `poll_s` seconds whether the client is still connected.

    Raises:
        ValueError: the client went away (SGLang raises the same type).
    """
    if is_disconnected is None:
        return await waiting
    task = asyncio.ensure_future(waiting)
    try:
        while not (await asyncio.wait({task}, timeout=poll_s))[0]:
            if await is_disconnected():
                raise ValueError("the client must stay connected until its answer is complete, but it went away.")
        return task.result()
    finally:
        await _cancel([task])


async def _next(stream: AsyncGenerator[Item, None]) -> tuple[Item] | None:
    """The next item in a tuple, or None at the end. A task cannot end with StopAsyncIteration."""
    try:
        return (await anext(stream),)
    except StopAsyncIteration:
        return None


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
