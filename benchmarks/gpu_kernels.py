"""Every kernel checked against its oracle and timed on an NVIDIA GPU, against the bytes that it must move.

    python -m benchmarks gpu_kernels [--output benchmarks/results/kernel-times.jsonl]
    python -m benchmarks gpu_kernels --check-only [--small]

Rows are those of `gpu_kernel_rows`, at each batch size, number of nodes and, where logits are read, vocabulary. A
kernel is timed inside a CUDA graph of many launches, so that launching costs nothing and clocks are warm; so are the
tensor operations that it replaces. The floor is the time of its reads and writes at the memory's measured bandwidth.

Without a GPU, under TRITON_INTERPRET=1, the rows are checked and timed in the interpreter; those times say nothing.
One JSON line per row in --output; the last line of stdout is one JSON object. Exit status 1 when a kernel differs from
its oracle, does not launch, or the builder is above `--limit-us` at B = 32, D = 15, N = 65.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_kernel_rows import DEPENDS_ON_VOCABULARY, ROWS, DifferentError, Row, Size, builder
from benchmarks.harness.provenance import collect_provenance

LAUNCHES_PER_GRAPH = 50
GOAL = ("tree_builder", Size(32, 65))


def time_in_graph(call: Callable[[], object], repeats: int) -> list[float]:
    """Microseconds of one call, per repeat, each the mean over a graph of many; plain calls where no GPU is."""
    if not torch.cuda.is_available():
        return [_time_plainly(call) for _ in range(repeats)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES_PER_GRAPH):
            call()
    times = []
    for repeat in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(1e3 * begin.elapsed_time(end) / LAUNCHES_PER_GRAPH)
    return times


def _time_plainly(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - started)


def measured_bandwidth(device: torch.device) -> float:
    """Bytes per microsecond of a large copy, read and write counted."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(time_in_graph(lambda: target.copy_(source), 5))


def check_builder(batch_size: int, depth: int, num_nodes: int, device: torch.device) -> str:
    """That the tree kernel launches and is right at one size; raises DifferentError."""
    return builder(Size(batch_size, num_nodes, depth), device).check()


def sizes(args: argparse.Namespace) -> Iterator[tuple[str, Size]]:
    """(module, size) of every row, kernels that read logits at every vocabulary."""
    for module in ROWS:
        vocabularies = args.vocabularies if module in DEPENDS_ON_VOCABULARY else args.vocabularies[:1]
        for batch, nodes, vocabulary in itertools.product(args.batch_sizes, args.num_nodes, vocabularies):
            yield module, Size(batch, nodes, args.depth, vocabulary)


def measure(row: Row, repeats: int, bandwidth: float) -> dict[str, Any]:
    """Times of a row that was checked, JSON-ready."""
    replaced = None
    if row.replaced is not None:
        replaced = summary(time_in_graph(row.replaced, repeats))
    return {
        "bench": "gpu_kernels",
        "kernel": row.kernel,
        "batch_size": row.size.batch_size,
        "num_nodes": row.size.num_nodes,
        "depth": row.size.depth,
        "vocabulary": row.size.vocabulary,
        "kernel_us": summary(time_in_graph(row.run, repeats)),
        "tensor_operations_us": replaced,
        "bytes_moved": row.moved_bytes,
        "floor_us": round(row.moved_bytes / bandwidth, 3),
    }


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of the times, in microseconds."""
    return {
        "median": round(statistics.median(times), 2),
        "min": round(min(times), 2),
        "max": round(max(times), 2),
        "n": len(times),
    }


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; `--small` is for the interpreter."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--num-nodes", type=int, nargs="+", default=[17, 65])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32768, 151936])
    parser.add_argument("--depth", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit-us", type=float, default=100.0, help="goal of the builder at B = 32, D = 15, N = 65")
    parser.add_argument("--check-only", action="store_true", help="compare with the oracles, time nothing")
    parser.add_argument("--small", action="store_true", help="one request and three, 17 nodes, 3 positions")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if args.small:
        args.batch_sizes, args.num_nodes, args.vocabularies, args.depth, args.repeats = [1, 3], [17], [4096], 3, 1
    return args


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Check every row, time it unless told otherwise; a kernel that fails does not stop the next."""
    origin, bandwidth = collect_provenance(), 0.0
    if not args.check_only:
        bandwidth = measured_bandwidth(device)
        print(f"memory: {bandwidth / 1e6:.2f} TB/s")
    failed, goal, checked = 0, None, 0
    for module, size in sizes(args):
        where = f"{module:28}B {size.batch_size:3d}  N {size.num_nodes:4d}  V {size.vocabulary:7d}  "
        try:
            row = ROWS[module](size, device)
            print(where + row.check(), flush=True)
        except (DifferentError, RuntimeError, ValueError, ImportError) as error:
            failed += 1
            print(f"{where}FAIL {type(error).__name__}: {error}", flush=True)
            continue
        checked += 1
        if args.check_only:
            continue
        line = measure(row, args.repeats, bandwidth) | {"provenance": origin}
        show(line)
        if (row.kernel, size) == GOAL:
            goal = line["kernel_us"]["median"]
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    met = goal is None or goal <= args.limit_us
    print(
        json.dumps({"checked": checked, "failed": failed, "goal_row_us": goal, "limit_us": args.limit_us, "met": met})
    )
    return 0 if met and checked and not failed else 1


def show(line: dict[str, Any]) -> None:
    """A row for a person."""
    kernel, replaced = line["kernel_us"], line["tensor_operations_us"]
    spread = f"{kernel['median']:.1f} us ({kernel['min']:.1f}-{kernel['max']:.1f})"
    instead = f", tensor operations {replaced['median']:.1f} us" if replaced else ""
    print(f"{'':28}{spread}{instead}, floor {line['floor_us']:.2f} us", flush=True)


def main(argv: Sequence[str]) -> int:
    """Measure every combination of sizes."""
    args = parse_args(argv)
    if torch.cuda.is_available():
        return run(args, torch.device("cuda"))
    if os.environ.get("TRITON_INTERPRET") != "1":
        print(
            "gpu_kernels: an NVIDIA GPU is needed, torch sees none; TRITON_INTERPRET=1 checks without", file=sys.stderr
        )
        return 2
    return run(args, torch.device("cpu"))
