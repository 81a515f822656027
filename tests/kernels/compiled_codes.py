"""What Triton would compile for the launches of our kernels: its own keys, computed without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ddtree_sglang.kernels import (
    candidates_triton,
    node_penalties_triton,
    round_commit_triton,
    round_inputs_triton,
    tree_builder_triton,
    window_mask_triton,
)

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
KERNELS = (
    (candidates_triton, "scan_kernel"),
    (candidates_triton, "select_kernel"),
    (round_inputs_triton, "_round_inputs_kernel"),
    (tree_builder_triton, "_build_tree_kernel"),
    (round_commit_triton, "_commit_round_kernel"),
)
PENALTY_KERNELS = (
    (node_penalties_triton, "_penalize_kernel"),
    (node_penalties_triton, "_count_kernel"),
)
"""Those of rounds of requests with penalties, besides."""
WINDOW_KERNELS = ((window_mask_triton, "_window_mask_kernel"),)
"""Those of rounds of a target with sliding windows, besides."""


class Launches:
    """Stands for a kernel; a launch runs nothing and leaves the key of the code that it would need."""

    def __init__(self, kernel: Any, codes: set[tuple[str, str]]) -> None:
        # In the interpreter a kernel holds what it was declared with; the compiler's form of it is made here.
        compiled = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
        self._name, self._codes = compiled.fn.__name__, codes
        self._bind = create_function_from_signature(compiled.signature, compiled.params, BACKEND)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """Launch, as `kernel[grid](...)`."""

        def launch(*arguments: Any, **constants: Any) -> None:
            _, specialization, options = self._bind(*arguments, **constants)
            self._codes.add((self._name, f"{specialization} {sorted(options.items())}"))

        return launch


def record_codes(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """A set that from now on gets what each launch of a kernel of a round needs compiled: its name and the key."""
    codes: set[tuple[str, str]] = set()
    for module, name in (*KERNELS, *PENALTY_KERNELS, *WINDOW_KERNELS):
        monkeypatch.setattr(module, name, Launches(getattr(module, name), codes))
    return codes
