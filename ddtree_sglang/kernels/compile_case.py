"""The specializations that serving launches, as the module of each kernel lists them: what is compiled to check them.

A module of this folder that launches kernels has a function

    def compile_cases() -> Iterator[CompileCase]

that yields every combination of `tl.constexpr` values that serving may launch: each size class, each flag, each dtype.
A kernel that only other kernels call needs none. `python -m benchmarks kernel_facts` compiles them all for several GPUs
without having one, finds kernels that no case names, and holds registers, spills and shared memory against limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

Argument = torch.dtype | int | float
"""A dtype stands for a tensor of it at an address that 16 divides, as torch allocates them; a number for itself."""


@dataclass(frozen=True)
class CompileCase:
    """One specialization of a kernel: what Triton compiles when it is launched with such arguments."""

    kernel: Any  # a function under `@triton.jit`
    arguments: Mapping[str, Argument]  # every parameter that is no `tl.constexpr`, by name
    constants: Mapping[str, Any]  # every parameter that is one, by name
    num_warps: int
    shared_reason: str = ""  # why shared memory above the limit is right, where it is

    @property
    def name(self) -> str:
        """The constants, for a table."""
        return ", ".join(f"{name}={value}" for name, value in self.constants.items()) or "no constants"
