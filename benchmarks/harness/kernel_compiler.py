"""Triton kernels compiled for a GPU that is not there: what the compiler and its assembler, ptxas, say of each.

Triton's wheel carries ptxas. Nothing is launched, so nothing here says how long a kernel takes or whether it is right.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, MockTensor, create_function_from_signature

from ddtree_sglang.kernels.compile_case import Argument, CompileCase

MAX_REGISTERS_OF_ONE_WARP = 128
MAX_SHARED_BYTES = 48 * 1024  # what a block may have without asking for more


@dataclass(frozen=True)
class KernelFacts:
    """One specialization of a kernel, compiled for one architecture; registers are per thread."""

    kernel: str
    specialization: str
    target: str  # "sm_90"
    num_warps: int
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    ptx: str

    def broken_limits(self, shared_reason: str = "") -> list[str]:
        """Each limit that does not hold, in words; `shared_reason` justifies shared memory above its limit."""
        spilled = self.stack_bytes + self.spill_store_bytes + self.spill_load_bytes
        broken = []
        if spilled:
            broken.append(f"{spilled} bytes of stack and spills, none are allowed")
        if self.num_warps == 1 and self.registers > MAX_REGISTERS_OF_ONE_WARP:
            broken.append(f"{self.registers} registers, at most {MAX_REGISTERS_OF_ONE_WARP} with one warp")
        if self.shared_bytes >= MAX_SHARED_BYTES and not shared_reason:
            broken.append(f"{self.shared_bytes} bytes of shared memory, below {MAX_SHARED_BYTES} without a reason")
        return broken


def compile_for(case: CompileCase, capability: int) -> KernelFacts:
    """What a kernel that was compiled for a GPU of that capability (90 for sm_90) needs of it.

    Raises:
        ValueError: the case's names are not the kernel's parameters.
        RuntimeError: Triton is in its interpreter.
    """
    log = StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), redirect_stdout(log):
        # From the cache it would come without the assembler's words.
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = compile_kernel(case, capability)
    return KernelFacts(
        kernel=case.kernel.fn.__name__,
        specialization=case.name,
        target=f"sm_{capability}",
        num_warps=case.num_warps,
        **_assembler_facts(log.getvalue()),
        shared_bytes=int(compiled.metadata.shared),
        ptx=compiled.asm["ptx"],
    )


def compile_kernel(case: CompileCase, capability: int) -> Any:
    """Triton's compiled kernel, every form of it in `asm`, as a launch on a GPU of that capability would make it.

    Raises:
        ValueError: the case's names are not the kernel's parameters.
        RuntimeError: Triton is in its interpreter.
    """
    if not isinstance(case.kernel, JITFunction):
        raise RuntimeError("Triton compiles nothing in its interpreter; start Python without TRITON_INTERPRET")
    target = GPUTarget("cuda", capability, 32)
    source, options = _source(case, make_backend(target))
    return triton.compile(source, target=target, options=options)


def _source(case: CompileCase, backend: Any) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton makes of a launch with these arguments, specialized on their values as a launch is."""
    kernel, given = case.kernel, {**case.arguments, **case.constants}
    differing = sorted(set(kernel.arg_names) ^ set(given))
    if differing:
        raise ValueError(f"a case names each parameter of {kernel.fn.__name__}, got {differing} missing or unknown")
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    values = {name: _stand_in(value) if name in case.arguments else value for name, value in given.items()}
    bound, specialization, keywords = bind(**values, num_warps=case.num_warps)
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialization, None)
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def _stand_in(argument: Argument) -> Any:
    return MockTensor(argument) if isinstance(argument, torch.dtype) else argument


def _assembler_facts(log: str) -> dict[str, int]:
    """Numbers out of what `ptxas -v` prints for one kernel."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "stack_bytes": r"(\d+) bytes stack frame",
        "spill_store_bytes": r"(\d+) bytes spill stores",
        "spill_load_bytes": r"(\d+) bytes spill loads",
    }
    found = {name: re.findall(pattern, log) for name, pattern in patterns.items()}
    if any(len(numbers) != 1 for numbers in found.values()):
        raise RuntimeError(f"ptxas should name registers, stack and spills once for one kernel, got:\n{log}")
    return {name: int(numbers[0]) for name, numbers in found.items()}


def kernel_modules(package: ModuleType) -> list[ModuleType]:
    """The modules of a package, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))
    return [importlib.import_module(name) for name in names]


def cases_of(module: ModuleType) -> list[CompileCase]:
    """What its `compile_cases()` yields, if it has one."""
    return list(module.compile_cases()) if hasattr(module, "compile_cases") else []


def kernels_without_case(modules: list[ModuleType]) -> list[str]:
    """Kernels of these modules that neither a case names nor, directly or not, a kernel with a case calls."""
    covered: set[int] = set()
    waiting = [case.kernel for module in modules for case in cases_of(module)]
    while waiting:
        kernel = waiting.pop()
        if id(kernel) not in covered:
            covered.add(id(kernel))
            waiting += _called_by(kernel)
    return [
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__ and id(value) not in covered
    ]


def _called_by(kernel: JITFunction) -> Iterator[JITFunction]:
    for name in kernel.fn.__code__.co_names:
        value = kernel.fn.__globals__.get(name)
        if isinstance(value, JITFunction):
            yield value
