"""Looks through the process's modules for all hooks together, where SGLang looks once for each hook.

`from module import function` keeps the function that was. So SGLang, which wraps one, looks for it in every attribute
of every module (plugins/hook_registry.py, `_propagate_patch`). A server has some 9,000 modules: sixty hooks took 2.5 s
of each of its three processes.

Methods are looked for once, behind the last hook. A hooked function of a module, or a class inside a class, is still
looked for at once, as the next hook may name it where it was imported to; the identities of what each module holds are
kept for that, and taken anew of a module that is new or has another number of attributes. A module that has since bound
such a function to a name that it had before is found with the methods, behind the last hook. A hook that names a method
by a module's own name for it wraps the method as it was without hooks; methods are named by their class.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

logger = logging.getLogger(__name__)

Propagate = Callable[[object, object, object], int]


class Hooked(NamedTuple):
    """What was wrapped: SGLang's function, and what it is called with."""

    propagate: Propagate
    original: object
    wrapped: object
    holder: object


class Names:
    """What modules hold, by identity, as it was when each was last looked at."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[ModuleType, int, frozenset[int]]] = {}

    def holders(self, original: object) -> list[ModuleType]:
        """Those modules that held it when they were last looked at; new and grown ones are looked at now."""
        held, wanted, found = self._held, id(original), []
        for module in modules():
            attributes = vars(module)
            known = held.get(id(module))
            if known is None or known[1] != len(attributes):
                # The module is kept, so that its identity stays its own.
                known = module, len(attributes), frozenset(map(id, list(attributes.values())))
                held[id(module)] = known
            if wanted in known[2]:
                found.append(module)
        return found

    def replace(self, original: object, wrapped: object, source: object) -> int:
        """What `_propagate_patch` does, at those modules alone that hold it; as many attributes as it sets."""
        replaced = 0
        for module in self.holders(original):
            # Its attributes are others now, and as many.
            self._held.pop(id(module), None)
            if module is source:
                continue
            for name, value in list(vars(module).items()):
                if value is original:
                    try:
                        setattr(module, name, wrapped)
                        replaced += 1
                    except (AttributeError, TypeError):
                        pass
        # SGLang has set the wrapped one there before.
        self._held.pop(id(source), None)
        return replaced


class Look(NamedTuple):
    """One run of `HookRegistry.apply_hooks`: what it has wrapped, in its order, and what modules hold."""

    wrapped: list[Hooked]
    names: Names


_look: Look | None = None
"""Of the hooks that are being applied; None while none are."""


def collect_methods(stock: Propagate) -> Propagate:
    """In the place of `hook_registry._propagate_patch`."""

    def propagate(original: object, wrapped: object, source_module: object) -> int:
        if _look is None:
            return stock(original, wrapped, source_module)
        _look.wrapped.append(Hooked(stock, original, wrapped, source_module))
        if isinstance(source_module, type) and not isinstance(original, type):
            return 0
        return _look.names.replace(original, wrapped, source_module)

    return propagate


def apply_with_one_scan(stock: Callable[[], None]) -> Callable[[], None]:
    """In the place of `HookRegistry.apply_hooks`."""

    def apply_hooks() -> None:
        global _look
        # What is imported to be wrapped may apply hooks of its own meanwhile.
        outer, _look = _look, Look([], Names())
        own = _look.wrapped
        try:
            stock()
        finally:
            _look = outer
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
                logger.exception("Failed to replace other names of what was hooked in %s", one.holder)

    return apply_hooks


def held_by_modules(objects: Iterable[object]) -> set[int]:
    """Identities of those objects that are an attribute of some module."""
    wanted, held = {id(one) for one in objects}, set[int]()
    for module in modules():
        # Without a step of Python's for each of some 400,000 attributes.
        held |= wanted.intersection(map(id, list(vars(module).values())))
    return held


def modules() -> Iterator[ModuleType]:
    """The process's, without what else stands in `sys.modules`."""
    return (module for module in list(sys.modules.values()) if isinstance(module, ModuleType))
