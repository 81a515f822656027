"""Plant a difference in a body, to see that the comparison finds it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from tests.e2e.conformance.comparing import FLOAT_TOLERANCE


def places(body: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a value that is neither an object nor a list, and of every empty list."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield from places(value, (*at, name))
    elif isinstance(body, list) and body:
        for index, value in enumerate(body):
            yield from places(value, (*at, index))
    else:
        yield at


def changed(body: Any, at: tuple[Any, ...], change: Any) -> Any:
    """A copy with `change` applied to what is at that place."""
    body = copy.deepcopy(body)
    holder = body
    for step in at[:-1]:
        holder = holder[step]
    change(holder, at[-1])
    return body


def differ(holder: Any, key: Any) -> None:
    """Another value of the same kind."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, (int, float)):
        holder[key] = value + 10 * FLOAT_TOLERANCE * (1 + abs(value)) if isinstance(value, float) else value + 1
    elif isinstance(value, str):
        holder[key] = value + "x"
    else:
        holder[key] = [1] if value == [] else 0


def drop(holder: Any, key: Any) -> None:
    """Nothing there any more."""
    del holder[key]
