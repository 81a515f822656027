"""One look through the process's modules for all hooks on methods, where SGLang looks once for each hook.

`from module import function` keeps the function that was. So SGLang, which wraps one, looks for it in every attribute
of every module (plugins/hook_registry.py, `_propagate_patch`). A server has some 9,000 modules: sixty hooks took 2.5 s
of each of its three processes. Here SGLang's function is called only for what some module holds.

A hooked function of a module, or a class inside a class, is still looked for at once, as the next hook may name it
where it was imported to. A hook that names a method by a module's own name for it wraps the method as it was without
hooks; methods are named by their class.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

logger = logging.getLogger(__name__)

Propagate = Callable[[object, object, object], int]


class Hooked(NamedTuple):
    """A method that was wrapped: SGLang's function, and what it is called with."""

    propagate: Propagate
    original: object
    wrapped: object
    holder: object


_methods: list[Hooked] | None = None
"""Of the hooks that are being applied, in their order; None while none are."""


def collect_methods(stock: Propagate) -> Propagate:
    """In the place of `hook_registry._propagate_patch`."""

    def propagate(original: object, wrapped: object, source_module: object) -> int:
        if _methods is not None and isinstance(source_module, type) and not isinstance(original, type):
            _methods.append(Hooked(stock, original, wrapped, source_module))
            return 0
        return stock(original, wrapped, source_module) if held_by_modules([original], but=source_module) else 0

    return propagate


def apply_with_one_scan(stock: Callable[[], None]) -> Callable[[], None]:
    """In the place of `HookRegistry.apply_hooks`."""

    def apply_hooks() -> None:
        global _methods
        # What is imported to be wrapped may apply hooks of its own meanwhile.
        outer, _methods = _methods, []
        own = _methods
        try:
            stock()
        finally:
            _methods = outer
        held = held_by_modules([one.original for one in own])
        for one in own:
            if id(one.original) not in held:
                continue
            # A method that an heir's hook has wrapped again.
            held.add(id(one.wrapped))
            try:
                one.propagate(one.original, one.wrapped, one.holder)
            except Exception:
                # As SGLang does with each target.
                logger.exception("Failed to replace other names of a method of %s", one.holder)

    return apply_hooks


def held_by_modules(objects: Iterable[object], but: object = None) -> set[int]:
    """Identities of those objects that are an attribute of some module, `but` left out."""
    wanted, held = {id(one) for one in objects}, set[int]()
    for module in list(sys.modules.values()):
        if module is not but and isinstance(module, ModuleType):
            # Without a step of Python's for each of some 400,000 attributes.
            held |= wanted.intersection(map(id, list(vars(module).values())))
    return held
