"""A change to another package's code: declared as data in `*patches.py`, installed here, printed by `ddtree doctor`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, NamedTuple

Kind = Literal["before", "after", "around", "replace", "assign", "object"]


class Patch(NamedTuple):
    """One change to foreign code.

    Attributes:
        target: dotted path of what is changed; of kind "object", the class whose objects are.
        kind: "before", "after", "around" and "replace" are SGLang's hook types; "assign" puts what `ours` makes of the
            present value in its place; "object" sets attributes of single objects, which `ours` does itself.
        ours: "module:name" of our function; nothing of the module is imported before it is needed.
        why: what would be wrong without it.
        fields: of kind "object", the attributes that are set, separated by spaces.
    """

    target: str
    kind: Kind
    ours: str
    why: str
    fields: str = ""


_assigned: dict[str, tuple[Any, tuple[str, ...]]] = {}
"""By target, what stands there, and which functions of ours made it, one around the other."""


def install(patches: Iterable[Patch], registry: Any, hook_type: Any) -> None:
    """Register hooks and make assignments, in the order of the list; objects are left to their own code.

    Args:
        registry: SGLang's `HookRegistry`, which wraps when its `apply_hooks` runs, after the last plugin.
        hook_type: SGLang's `HookType`.
    """
    for patch in patches:
        if patch.kind == "assign":
            assign(patch)
        elif patch.kind != "object":
            registry.register(patch.target, late(patch.ours), hook_type(patch.kind))


def assign(patch: Patch) -> None:
    """Replace a module's or class's attribute by what our function makes of it; harmless when called again.

    Several patches may have one target: each is put around those before.
    """
    place, _, name = patch.target.rpartition(".")
    holder = pkgutil.resolve_name(place)
    stock = getattr(holder, name)
    made, ours = _assigned.get(patch.target, (None, ()))
    within = ours if made is stock else ()
    if patch.ours not in within:
        made = resolve(patch.ours)(stock)
        _assigned[patch.target] = made, (*within, patch.ours)
        setattr(holder, name, made)


def late(ours: str) -> Callable[..., Any]:
    """A function that calls ours, and imports it at the first call: its module may need what is being imported now."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return resolve(ours)(*args, **kwargs)

    call.__module__, _, call.__qualname__ = ours.partition(":")
    return call


@cache
def resolve(ours: str) -> Callable[..., Any]:
    """The function that "module:name" names."""
    found: Callable[..., Any] = pkgutil.resolve_name(ours)
    return found
