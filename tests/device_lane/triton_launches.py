"""Every launch of a Triton kernel passes through one door of the interpreter, which is watched here."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import _disable_current_modes

from tests.device_lane.device import counts, mode
from tests.device_lane.doors import inside_door
from tests.fast_interpreter import speed_up


def install() -> None:
    """Count launches and hand them to a capture.

    Raises:
        RuntimeError: Triton was imported without its interpreter.
    """
    from triton.runtime import interpreter

    speed_up()
    executor = interpreter.GridExecutor
    execute = executor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        name = getattr(self.fn, "__name__", str(self.fn))

        def run() -> None:
            with _disable_current_modes():
                execute(self, *args, **kwargs)

        run()
        if inside_door():
            return
        counts.launches[name] += 1
        _note_variant(self, name, args, kwargs)
        if mode.recorder is not None:
            mode.recorder.kernel(run, name)

    executor.__call__ = launch


_variants: set[tuple[Any, ...]] = set()


def _note_variant(executor: Any, name: str, args: Any, kwargs: Any) -> None:
    """On a GPU each set of compile-time values is compiled when it is first launched."""
    values = {**dict(zip(executor.arg_names, args, strict=False)), **kwargs}
    variant = (name, *((constant, str(values.get(constant))) for constant in executor.constexprs))
    if variant not in _variants:
        _variants.add(variant)
        counts.new_variants[name] += 1
