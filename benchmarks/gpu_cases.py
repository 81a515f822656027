"""The servers that `gpu_proof` starts: for each its algorithm, attention backend, flags, and what it is asked.

A case is started once; `gpu_record` writes down what it answered, and `gpu_judge` compares records. So a case that was
recorded in an earlier call need not run again, and what failed can be judged anew where no GPU is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.harness.gpu_machine import Machine

Pair = Literal["tiny", "recurrent", "real", "shape"]
BACKENDS = ("triton", "fa3", "flashinfer")
BUDGETS = (16, 64)
"""Trees of 17 and 65 nodes: within a block of 16 and far wider than it."""
BLOCK_SIZE = 8
"""Of the tiny drafter: the bonus token and seven drafts."""
LIMIT_CONTEXT_LEN = 128
# No multiple of 4096: there a page table that is written past its row reaches the next request's (FA3).
BATCH_SIZES = (1, 4, 8)
# float32 as it is written: sgl_kernel's norms know half precision alone, and Triton's products would be TF32.
# Room for states of requests, their copies and the prefix cache. FlashInfer would compile its prefill first.
STATES = ("--max-mamba-cache-size", "160", "--mamba-track-interval", "64", "--linear-attn-prefill-backend", "triton")
AS_WRITTEN = (("SGLANG_FORCE_FUSED_OP_BACKEND", "torch"), ("TRITON_F32_DEFAULT", "ieee"))


@dataclass(frozen=True)
class Case:
    """One server. `flags` are for every machine, `gpu_flags` mean nothing on the CPU and are left out there.

    `asked` names sets of questions (gpu_questions). `budget` is None for plain decoding and the stock chain. `policy`
    says how the one of a tree is chosen.
    """

    name: str
    algorithm: str | None
    backend: str
    budget: int | None = None
    pair: Pair = "tiny"
    policy: str = "fixed"
    dtype: str = "bfloat16"
    asked: tuple[str, ...] = ("many",)
    flags: tuple[str, ...] = ()
    gpu_flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    decode_graphs: bool = True
    overlap: bool = True
    prefill_graphs: bool = False
    max_running: int = 16
    max_total_tokens: int | None = 16384

    def server_flags(self, machine: Machine, at_once: int) -> tuple[str, ...]:
        """Everything of the command line that `ServerSpec` has no field for."""
        flags = ["--max-running-requests", str(self.max_running), "--random-seed", "0", *self.flags]
        if self.max_total_tokens is not None:
            flags += ["--max-total-tokens", str(self.max_total_tokens)]
        if machine.kind == "cpu":
            return tuple(flags)
        # FlashInfer's sampling kernels compile for minutes where they were not built before.
        flags += ["--attention-backend", self.backend, "--sampling-backend", "pytorch", *self.gpu_flags]
        if self.max_total_tokens is not None:
            flags += ["--mem-fraction-static", str(machine.mem_fraction(at_once))]
        if self.decode_graphs:
            flags += ["--cuda-graph-bs-decode", *map(str, BATCH_SIZES)]
        else:
            flags += ["--disable-decode-cuda-graph"]
        if not self.overlap:
            flags.append("--disable-overlap-schedule")
        return (*flags, *(() if self.prefill_graphs else ("--disable-prefill-cuda-graph",)))


def _table() -> dict[str, Case]:
    cases = [Case("plain/triton", None, "triton")]
    trees = {(b, n): Case(f"ddtree-{n}/{b}", "DDTREE", b, n) for b in BACKENDS for n in BUDGETS}
    cases += trees.values()
    for name, of_works in (("plain", Case("", None, "triton")), *((b, trees[b, 16]) for b in BACKENDS)):
        cases.append(replace(of_works, name=f"works/{name}", asked=("few",)))
    cases += [
        replace(case, name=f"float32/{case.name}", dtype="float32", environment=AS_WRITTEN)
        for case in (cases[0], trees["triton", 16], trees["triton", 64])
    ]
    cases += _variants(trees)
    recurrent = (cases[0], *(trees[b, 16] for b in ("triton", "fa3")))
    cases += [
        replace(case, name=f"recurrent/{case.name}", pair="recurrent", asked=("many", "again"), gpu_flags=STATES)
        for case in recurrent
    ]
    real = (Case("plain/triton", None, "triton"), *trees.values())
    cases += [replace(case, name=f"real/{case.name}", pair="real") for case in real]
    cases.append(
        Case(
            "memory",
            "DDTREE",
            "triton",
            64,
            "shape",
            asked=("crowd",),
            flags=("--load-format", "dummy"),
            max_running=32,
            max_total_tokens=None,
        )
    )
    return {case.name: case for case in cases}


def _variants(trees: dict[tuple[str, int], Case]) -> list[Case]:
    """The tree of 17 or 65 nodes under one further condition."""
    found: list[Case] = []
    limit = ("--context-length", str(LIMIT_CONTEXT_LEN))
    found.append(Case("limit/plain", None, "triton", asked=("limit",), flags=limit))
    found += [replace(trees[b, 16], name=f"limit/{b}", asked=("limit",), flags=limit) for b in BACKENDS]
    for b in ("triton", "fa3"):
        strict = ("--enable-deterministic-inference",)
        found.append(replace(trees[b, 16], name=f"deterministic/{b}", gpu_flags=strict))
        found.append(replace(trees[b, 16], name=f"prefill-graphs/{b}", prefill_graphs=True))
        found.append(replace(trees[b, 16], name=f"no-sync/{b}", gpu_flags=("--speculative-ddtree-check-sync",)))
    found.append(replace(trees["triton", 16], name="eager/triton", decode_graphs=False))
    load, measured = ("--speculative-ddtree-verify-tokens", "15"), ("--speculative-ddtree-measure-seconds", "3")
    for b in ("triton", "flashinfer"):
        found.append(replace(trees[b, 16], name=f"policy/{b}", policy="load", flags=load))
    for b in ("triton", "fa3"):
        found.append(replace(trees[b, 16], name=f"adaptive/{b}", policy="adaptive", flags=measured))
    found.append(Case("sampled/plain", None, "triton", asked=("sampled",)))
    found += [replace(trees[b, 16], name=f"sampled/{b}", asked=("sampled",)) for b in BACKENDS]
    # Under overlap plain decoding counts each token for penalties a step late, also of a request that is alone.
    found.append(Case("features/plain", None, "triton", asked=("features",), overlap=False))
    found += [replace(trees[b, 16], name=f"features/{b}", asked=("features",)) for b in BACKENDS]
    ranks = ("--tp-size", "2")
    found.append(Case("tp/plain", None, "triton", flags=ranks))
    found.append(replace(trees["triton", 16], name="tp/triton", flags=(*ranks, "--speculative-ddtree-check-ranks")))
    return found


CASES = _table()
"""Name -> case."""
