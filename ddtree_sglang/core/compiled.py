"""Loops over a round's small arrays, compiled: a call into NumPy takes 5 to 10 microseconds between two forwards.

Policy "adaptive" does its arithmetic once a round, when the forwards have emptied the processor's caches, so what
counts is how many calls there are, not how long the arrays. numba is a dependency of SGLang's own, pinned by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

logger = logging.getLogger(__name__)

Loop = TypeVar("Loop", bound=Callable[..., Any])

_compilers: dict[Callable[..., Any], Callable[[], Any]] = {}
"""By what is called in a loop's place: makes its machine code, once."""


def compile_loops() -> None:
    """Make the code of every loop whose module was imported, so that no round waits for it: seconds, where none is kept
    on disk.
    """
    for machine_code in _compilers.values():
        machine_code()


def _compile_called(loop: Callable[..., Any]) -> None:
    """Loops of the same module that this one calls: machine code calls nothing else."""
    for name in loop.__code__.co_names:
        called = loop.__globals__.get(name)
        if callable(called) and called in _compilers:
            _compilers[called]()


def compiled(*signatures: str) -> Callable[[Loop], Loop]:
    """Have numba make machine code of a function, for arguments of each of these types, when it is called first.

    Without numba it is called as it is.

    numba is imported then, too: most servers and commands never ask. The code is kept on disk where some folder can be
    written (numba's own choice, `NUMBA_CACHE_DIR`), so that only the first server on a machine waits for it.

    Args:
        signatures: as numba reads them; `[:, :]` is an array of any strides, whose shape the function says.
    """

    def decorate(loop: Loop) -> Loop:
        @cache
        def machine_code() -> Any:
            _compile_called(loop)
            code = made()
            if loop.__globals__.get(loop.__name__) is call:
                # Who calls it by this name calls machine code at once, another loop among them.
                loop.__globals__[loop.__name__] = code
            return code

        def made() -> Any:
            try:
                import numba
            except ImportError as error:
                # Tables are read and drawn where SGLang is not.
                logger.warning("numba cannot be imported (%s): %s is as slow as Python is.", error, loop.__name__)
                return loop
            try:
                return numba.njit(list(signatures), cache=True)(loop)
            except Exception as error:  # noqa: BLE001
                # No folder can be written, the disk is full, or a file is damaged, which may raise anything.
                logger.warning("%s is compiled without a file: %s: %s", loop.__name__, type(error).__name__, error)
                return numba.njit(list(signatures))(loop)

        @wraps(loop)
        def call(*arguments: Any) -> Any:
            return machine_code()(*arguments)

        _compilers[call] = machine_code
        return cast("Loop", call)

    return decorate
