"""Streams and events of the device, which runs everything at once and in order.

In late mode a copy to the host holds rubbish until somebody waits for an event that was recorded after it: a reader who
does not wait reads rubbish, as he may on a GPU.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

POISON = 77
"""What a copy to the host holds before it is there."""

_clock = 0
_pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []
# Threads that send keys to another server wait for events, too.
_lock = threading.RLock()
late = False


def copy_to_host(source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    """Copy now, or in late mode, where the caller does not wait, once an event is waited for."""
    global _clock
    if not (late and non_blocking):
        return target.copy_(source)
    with _lock:
        _clock += 1
        target.fill_(bool(POISON) if target.dtype == torch.bool else POISON)
        _pending.append((_clock, target, source.clone()))
    return target


def arrive(until: int | None = None) -> None:
    """Finish the copies that were issued up to a time; all of them for None."""
    with _lock, torch.inference_mode():
        while _pending and (until is None or _pending[0][0] <= until):
            _, target, value = _pending.pop(0)
            target.copy_(value)


class Event:
    """A point in the order of all work."""

    def __init__(self, *_: Any, enable_timing: bool = False, **__: Any) -> None:
        self._time: int | None = None
        self._recorded_s: float | None = None
        self._is_timed = enable_timing

    def record(self, stream: Any = None) -> None:
        """Remember the work issued so far."""
        self._time, self._recorded_s = _clock, time.perf_counter()

    def synchronize(self) -> None:
        """Wait on the host."""
        if self._time is not None:
            arrive(self._time)

    def wait(self, stream: Any = None) -> None:
        """Let a stream wait; all work is in order."""

    def query(self) -> bool:
        """Whether the work before it is done; a copy that nobody waited for is not."""
        return self._time is None or not _pending or _pending[0][0] > self._time

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds: work is done as it is issued.

        Raises:
            RuntimeError: as torch does, of events that are not timed, or not done.
        """
        if not (self._is_timed and end_event._is_timed and self.query() and end_event.query()):
            raise RuntimeError("both events must be recorded with enable_timing=True, and done")
        assert self._recorded_s is not None
        assert end_event._recorded_s is not None
        return 1e3 * (end_event._recorded_s - self._recorded_s)


class Stream:
    """A name for an order of work."""

    _made = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Stream._made += 1
        self.cuda_stream = self.stream_id = Stream._made

    def wait_stream(self, stream: Any) -> None:
        """All work is in order."""

    def wait_event(self, event: Any) -> None:
        """All work is in order."""

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event here."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Wait on the host."""
        arrive()

    def query(self) -> bool:
        """Whether its work is done."""
        return not _pending

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


_current = Stream()


def current_stream(_device: Any = None) -> Stream:
    """The stream that work is issued to."""
    return _current


class StreamContext(AbstractContextManager):  # type: ignore[type-arg]
    """Issue work to a stream."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._before: list[Stream] = []

    def __enter__(self) -> StreamContext:
        global _current
        self._before.append(_current)
        _current = self._stream or _current
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._before.pop()


def synchronize(_device: Any = None) -> None:
    """Wait for all work on the host."""
    arrive()


def install() -> None:
    """Give torch's CPU module, and what asks CUDA by name, these streams."""
    for module in (torch.cpu, torch.cuda):
        for name, value in {
            "Stream": Stream,
            "Event": Event,
            "StreamContext": StreamContext,
            "stream": StreamContext,
            "current_stream": current_stream,
            "default_stream": current_stream,
            "synchronize": synchronize,
        }.items():
            setattr(module, name, value)
