"""The doors of the kernels that the lane replaces by torch references.

A door is one node of a recorded CUDA graph. A kernel reads its tensors when it runs, so a door may read them on the
host at every replay, which no operator of a graph may do. Its host values (numbers, flags, None) are those of the call
that was captured.

Outside a capture a door calls through. A recorder sets `on_call`; it is then told of every call and may call `fn(*args,
**kwargs)` again with the same argument objects and copy the new results into `result`, in place: later nodes hold those
tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from torch.utils._python_dispatch import _disable_current_modes

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# (fn, args, kwargs, result). Called after `fn` returned; `fn` calls the reference again without telling `on_call`.
OnCall = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
on_call: OnCall | None = None

_depth = 0


def inside_door() -> bool:
    """Whether a reference is running: what it does is the inside of one kernel, and no recorder looks at it."""
    return _depth > 0


@contextmanager
def _inside() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        # A recorder is a dispatch mode. Without it the reference may read values and launch as it likes.
        with _disable_current_modes():
            yield
    finally:
        _depth -= 1


def kernel_door(fn: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make `fn` one kernel: its operators are not recorded, and `on_call` is told of the call.

    Tensors are arguments, or attributes of an argument that keep their identity from capture to replay. A door that is
    called inside another is a part of it and is not announced.
    """

    @functools.wraps(fn)
    def through(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if inside_door():
            return fn(*args, **kwargs)
        with _inside():
            result = fn(*args, **kwargs)
        if on_call is not None:
            # What is called again is the body inside its own door, with no word to the recorder.
            on_call(_replayed(fn), args, kwargs, result)
        return result

    return through


def _replayed(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def again(*args: Any, **kwargs: Any) -> Any:
        with _inside():
            return fn(*args, **kwargs)

    return again
