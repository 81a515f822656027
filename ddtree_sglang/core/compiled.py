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

_compilers: list[Callable[[], Any]] = []


def compile_loops() -> None:
    """Make the code of every loop whose module was imported, so that no round waits for it: seconds, where none is kept
    on disk.
    """
    for machine_code in _compilers:
        machine_code()


def compiled(signature: str) -> Callable[[Loop], Loop]:
    """Have numba make machine code of a function, for arguments of these types, when it is called first.

    Without numba it is called as it is.

    numba is imported then, too: most servers and commands never ask. The code is kept on disk where some folder can be
    written (numba's own choice, `NUMBA_CACHE_DIR`), so that only the first server on a machine waits for it.

    Args:
        signature: as numba reads it; `[:, :]` is an array of any strides, whose shape the function says.
    """

    def decorate(loop: Loop) -> Loop:
        @cache
        def machine_code() -> Any:
            try:
                import numba
            except ImportError as error:
                # Tables are read and drawn where SGLang is not.
                logger.warning("numba cannot be imported (%s): %s is as slow as Python is.", error, loop.__name__)
                return loop
            try:
                return numba.njit(signature, cache=True)(loop)
            except Exception as error:  # noqa: BLE001
                # No folder can be written, the disk is full, or a file is damaged, which may raise anything.
                logger.warning("%s is compiled without a file: %s: %s", loop.__name__, type(error).__name__, error)
                return numba.njit(signature)(loop)

        _compilers.append(machine_code)

        @wraps(loop)
        def call(*arguments: Any) -> Any:
            return machine_code()(*arguments)

        return cast("Loop", call)

    return decorate
