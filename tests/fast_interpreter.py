"""Triton's interpreter, remembering what it would work out again: the same values, in less than half the time.

It goes by operators, and each builds types and shapes anew. A call of a kernel's helper looks through the whole
language for what to replace, although nothing puts back what an earlier helper has replaced. In a process that
interprets, nothing compiles.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

_OF_TENSORS = "_of_tensors"
"""A block type's attribute here: the number and the shape that its tensors have."""

TAKEN = {
    "_patch_lang": ("fn",),
    "_get_np_dtype": ("tt_dtype",),
    "tensor.__init__": ("self", "handle", "type"),
    "block_type.__init__": ("self", "element_ty", "shape"),
}
"""What is replaced of Triton, with the parameters that it was written against."""


@functools.cache
def speed_up() -> None:
    """Put the memories in place.

    Raises:
        RuntimeError: Triton compiles here, or a function takes other parameters than it did.
    """
    import triton
    import triton.language as tl
    from triton.runtime import interpreter

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("Triton compiles in this process: start it with TRITON_INTERPRET=1")
    places = (
        (interpreter, "_patch_lang", _replacing_once(interpreter)),
        (interpreter, "_get_np_dtype", _by_name(tl, interpreter._get_np_dtype)),
        (tl.core.block_type, "__init__", _one_per_shape(tl, tl.core.block_type.__init__)),
        (tl.core.tensor, "__init__", _with_its_types_shape(tl)),
    )
    for holder, name, function in places:
        full_name = f"{holder.__name__}.{name}" if inspect.isclass(holder) else name
        found = tuple(inspect.signature(getattr(holder, name)).parameters)
        if found != TAKEN[full_name]:
            raise RuntimeError(f"Triton's {full_name} takes {found}; this was written for {TAKEN[full_name]}")
        setattr(holder, name, function)
    _leave_overflow_unasked(interpreter)


def _leave_overflow_unasked(interpreter: Any) -> None:
    """Each sum of integers is worked out in 64 bits, too, for an assertion that only a debugging interpreter makes."""
    builder = interpreter.interpreter_builder
    if builder.options.debug:
        raise RuntimeError("Triton's interpreter debugs here: it would ask about overflows, which are left out")
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _replacing_once(interpreter: Any) -> Callable[[Any], Any]:
    """The language is replaced for the first kernel of a module, for good."""
    replace, nothing_to_restore = interpreter._patch_lang, interpreter._LangPatchScope()
    done: set[int] = set()

    def patch_lang(fn: Any) -> Any:
        if id(fn.__globals__) not in done:
            replace(fn)
            done.add(id(fn.__globals__))
        return nothing_to_restore

    return patch_lang


def _by_name(tl: Any, find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Numpy's types by the names of Triton's: pointers have their element's in theirs."""
    known: dict[str, Any] = {}

    def np_dtype(tt_dtype: Any) -> Any:
        name = tt_dtype.element_ty.name if isinstance(tt_dtype, tl.block_type) else tt_dtype.name
        if name not in known:
            known[name] = find(tt_dtype)
        return known[name]

    return np_dtype


def _one_per_shape(tl: Any, make: Callable[..., None]) -> Callable[..., None]:
    """A block type has what the first of its elements and shape has."""
    known: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        values = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
        key = (element_ty.name, isinstance(shape, list), values)
        if key not in known:
            make(self, element_ty, shape)
            setattr(self, _OF_TENSORS, _number_and_shape(tl, values))
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    return init


def _number_and_shape(tl: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(size) for size in shape])


def _with_its_types_shape(tl: Any) -> Callable[..., None]:
    scalar = _number_and_shape(tl, ())

    def init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = vars(type)[_OF_TENSORS] if type.is_block() else scalar

    return init
