"""The machine of a GPU proof: what it is, what of it a server may take, and which attention backends it has.

Standard library only: it must be able to say what a machine lacks. Sizes are chosen from the memory that is found, so
that a card of 80 GB and one of 141 GB run the same sections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Literal

GIB = 2**30
# Of memory, what a server leaves to CUDA contexts, captured graphs and the activations of a large batch.
LEFT_ALONE_GIB = 3.0
MODULES = {
    "triton": "triton",
    "flashinfer": "flashinfer",
    "fa3": "sgl_kernel.flash_attn",
    "fa4": "sglang.kernels.ops.attention.flash_attention_v4",
}
"""Attention backend -> the module that it cannot do without."""
NEEDS_COMPUTE = {"fa3": 9, "fa4": 10}
"""SGLang's FlashAttention builds, by the major version of the GPU's compute capability: Hopper, Blackwell."""

Query = Callable[[list[str], Mapping[str, str]], CompletedProcess[str]]


@dataclass(frozen=True)
class Machine:
    """`kind` decides which flags a server gets; `gpus` are there in all, sizes are of the first one."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_gib: float
    gpus: int = 1
    compute: int = 0

    def mem_fraction(self, servers_at_once: int) -> float:
        """`--mem-fraction-static` of a server whose KV pool is capped by `--max-total-tokens`.

        SGLang takes weights and KV pool out of that share of what is free when the server starts
        (kv_cache_configurator.py, `_profile_available_bytes`). The last of several servers finds little, so each may
        take nearly all of it: the cap, not the share, keeps room for the others.
        """
        return 0.9 if servers_at_once > 1 else max(0.5, round(1 - 2 * LEFT_ALONE_GIB / self.memory_gib, 2))

    def fits(self, gib_of_one: float, most: int) -> int:
        """How many servers of `gib_of_one` each the card holds at once, at most `most`."""
        return max(0, min(most, int((self.memory_gib - LEFT_ALONE_GIB) / gib_of_one)))

    def lacks(self, backend: str, why_not: Callable[[str], str]) -> str:
        """Why an attention backend cannot run here, or empty; `why_not` is `Lab.why_not`."""
        if self.kind == "cpu":
            return ""
        needed = NEEDS_COMPUTE.get(backend)
        if needed is not None and self.compute != needed:
            return f"{backend} is for compute capability {needed}.x, this is {self.compute}.x"
        module = MODULES.get(backend)
        error = why_not(f"import {module}") if module else ""
        return f"import {module} fails here: {error}" if error else ""


def found_gpu(ask: Query, environment: Mapping[str, str]) -> Machine | None:
    """What nvidia-smi says of the first GPU that CUDA_VISIBLE_DEVICES leaves; None without one."""
    fields = "name,memory.total,compute_cap"
    told = ask(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"], environment)
    lines = [line for line in told.stdout.splitlines() if line.count(",") == 2]
    if told.returncode or not lines:
        return None
    lines = _visible(lines, environment)
    if not lines:
        return None
    name, memory_mib, compute = (part.strip() for part in lines[0].split(","))
    return Machine("cuda", name, float(memory_mib) / 1024, len(lines), int(compute.partition(".")[0] or 0))


def _visible(lines: list[str], environment: Mapping[str, str]) -> list[str]:
    """Those that CUDA shows to a process, in its order; nvidia-smi shows all. Names such as UUIDs are only counted."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return lines
    names = [one.strip() for one in chosen.split(",") if one.strip()]
    if all(one.isascii() and one.isdigit() and int(one) < len(lines) for one in names):
        return [lines[int(one)] for one in names]
    return lines[: len(names)]


def this_processor() -> Machine:
    """The CPU as a stand-in: the same sections, SGLang's CPU platform instead of a GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Machine("cpu", f"{len(os.sched_getaffinity(0))} CPU cores", memory)
