"""What every Triton kernel of the project costs a GPU's registers and memory, from its compiler: no GPU is needed.

    python -m benchmarks kernel_facts [--targets 80 90 100] [--only NAME] [--output results.jsonl]

Each module of `ddtree_sglang.kernels` lists the specializations that serving launches (`compile_cases`, see
kernels/compile_case.py). They are compiled for each target, and ptxas says registers, stack and spills. Limits: nothing
spilled and no stack; at most 128 registers in kernels of one warp; shared memory below 48 KiB, unless the case gives a
reason. A kernel without a case breaks the rules too: a new one cannot be forgotten.

A kernel that keeps the limits may still be slow, and a wrong one keeps them as well: times need a GPU
(`gpu_kernels`), results have tests.

One JSON line per kernel, specialization and target goes to the output file, a table to stdout, and the last line of
stdout is one JSON object. The exit status is 1 when a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton

import ddtree_sglang.kernels
from benchmarks.harness.kernel_compiler import (
    KernelFacts,
    cases_of,
    compile_for,
    kernel_modules,
    kernels_without_case,
)
from benchmarks.harness.provenance import collect_provenance

TARGETS = (80, 90, 100)
COLUMNS = ("registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes", "shared_bytes")


def row_of(facts: KernelFacts, broken: list[str]) -> dict[str, Any]:
    """One result line, without the PTX."""
    numbers = {name: value for name, value in asdict(facts).items() if name != "ptx"}
    return {"bench": "kernel_facts", **numbers, "broken_limits": broken}


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: per kernel and target, the number of specializations and the largest of each column."""
    lines = [
        "| kernel | target | specializations | warps | registers | stack and spills, bytes | shared memory, bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, target in sorted({(row["kernel"], int(row["target"].removeprefix("sm_"))) for row in rows}):
        own = [row for row in rows if (row["kernel"], row["target"]) == (kernel, f"sm_{target}")]
        warps = "-".join(str(count) for count in sorted({row["num_warps"] for row in own}))
        registers = [row["registers"] for row in own]
        spilled = max(row["stack_bytes"] + row["spill_store_bytes"] + row["spill_load_bytes"] for row in own)
        lines.append(
            f"| `{kernel}` | sm_{target} | {len(own)} | {warps} | {min(registers)}-{max(registers)} | {spilled} | "
            f"{max(row['shared_bytes'] for row in own)} |"
        )
    return "\n".join(lines)


def compile_all(targets: Sequence[int], only: str, output: Path | None) -> list[dict[str, Any]]:
    """Compile, print and write the cases of kernels that have `only` in their name, for every target, as it comes."""
    modules, origin = kernel_modules(ddtree_sglang.kernels), collect_provenance()
    rows = []
    cases = (case for module in modules for case in cases_of(module))
    for case in (case for case in cases if only in case.kernel.fn.__name__):
        for target in targets:
            facts = compile_for(case, target)
            row = row_of(facts, facts.broken_limits(case.shared_reason))
            numbers = "".join(f"{row[column]:>8}" for column in COLUMNS)
            verdict = "; ".join(row["broken_limits"])
            print(f"{facts.kernel:28}{facts.target:8}{numbers}  {facts.specialization}  {verdict}".rstrip(), flush=True)
            rows.append(row)
            if output:
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"provenance": origin}) + "\n")
    return rows


def main(argv: Sequence[str]) -> int:
    """Compile everything; 1 when a limit is broken or a kernel has no case, 2 when there is nothing to compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS), help="compute capabilities, as 90")
    parser.add_argument("--only", default="", help="kernels with this in their name")
    parser.add_argument("--output", type=Path, help="append one JSON line per kernel, specialization and target")
    args = parser.parse_args(argv)
    if triton.knobs.runtime.interpret:
        print("kernel_facts: Triton compiles nothing in its interpreter; unset TRITON_INTERPRET")
        return 2
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"{'kernel':28}{'target':8}    regs   stack  stores   loads  shared  specialization")
    rows = compile_all(args.targets, args.only, args.output)
    if not rows:
        print(f"kernel_facts: no kernel with a case has {args.only!r} in its name")
        return 2
    forgotten = kernels_without_case(kernel_modules(ddtree_sglang.kernels))
    for name in forgotten:
        print(f"{name} is in no compile_cases(); see ddtree_sglang/kernels/compile_case.py")
    print(f"\n{summary_table(rows)}\n")
    broken = [f"{row['kernel']} {row['target']} {row['specialization']}" for row in rows if row["broken_limits"]]
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"num_rows": len(rows), "broken": broken, "without_case": forgotten, "seconds": seconds}))
    return int(bool(broken or forgotten))
