"""Time of the one-launch tree builder on an NVIDIA GPU, against the bytes that it must move.

    python -m benchmarks gpu_kernels [--output benchmarks/results/gpu-kernels.jsonl]

For each batch B, depth D and node count N (K = N - 1): the kernel's tree is checked equal to the heap oracle's, then
timed inside a CUDA graph of many launches, so that launching costs nothing and clocks are warm. The floor is the time
of its reads and writes at the memory's measured bandwidth; for these sizes it is far below the time of any kernel.
core's batched builder, the tensor operations that the kernel replaces, is timed in a graph too.

One JSON line per row; the last line of stdout is one JSON object. Exit status 1 when a tree differs or a row is above
`--limit-us` at B = 32, D = 15, N = 65.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import collect_provenance
from ddtree_sglang.core import BuiltTree, ancestor_mask, build_draft_tree, build_draft_tree_heap, layout_draft_tree

LAUNCHES_PER_GRAPH = 50
PREFIX_LEN = 2048


def time_in_graph(call: Callable[[], object], repeats: int) -> list[float]:
    """Microseconds of one call, per repeat, each the mean over a graph of many."""
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


def measured_bandwidth() -> float:
    """Bytes per microsecond of a large copy, read and write counted."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(time_in_graph(lambda: target.copy_(source), 5))


def candidates(batch_size: int, depth: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, D, K] ids and log-probabilities on the host, and roots; wide and narrow distributions mixed."""
    generator = torch.Generator().manual_seed(batch_size * 1000 + depth)
    logits = torch.randn(batch_size, depth, 1000, generator=generator)
    logits = logits * (0.5 + 4 * torch.rand(batch_size, depth, 1, generator=generator))
    logprobs, ids = torch.log_softmax(logits, -1).topk(count, dim=-1)
    return ids, logprobs, torch.zeros(batch_size, dtype=torch.int64)


def measure(batch_size: int, depth: int, num_nodes: int, repeats: int, bandwidth: float) -> dict[str, Any]:
    """One row; raises SystemExit when the trees differ."""
    from ddtree_sglang.kernels.tree_builder_triton import build_into

    on_host = candidates(batch_size, depth, num_nodes - 1)
    ids, logprobs, roots = (tensor.cuda() for tensor in on_host)
    prefix_lens = torch.full((batch_size,), PREFIX_LEN, device="cuda")
    flat = torch.zeros(batch_size * num_nodes * (PREFIX_LEN + num_nodes), dtype=torch.bool, device="cuda")
    built = BuiltTree.empty(batch_size, num_nodes, ids.device, flat)
    build_into(built, ids, logprobs, roots, prefix_lens)
    oracle = build_draft_tree_heap(*on_host, num_nodes)
    for name in ("token_ids", "parents", "depths", "logprobs"):
        if not torch.equal(getattr(built.tree, name).cpu(), getattr(oracle, name)):
            raise SystemExit(f"the kernel's tree differs from the heap's in {name}; nothing was timed")

    def tensor_operations() -> object:
        tree = build_draft_tree(ids, logprobs, roots, num_nodes)
        return layout_draft_tree(tree, prefix_lens), ancestor_mask(tree.parents, depth)

    kernel = time_in_graph(lambda: build_into(built, ids, logprobs, roots, prefix_lens), repeats)
    core = time_in_graph(tensor_operations, repeats)
    written = built.tree.token_ids.numel() * (6 * 8 + 4) + batch_size * num_nodes * num_nodes
    moved = ids.numel() * 8 + logprobs.numel() * 4 + written
    return {
        "bench": "gpu_tree_builder",
        "batch_size": batch_size,
        "depth": depth,
        "num_nodes": num_nodes,
        "kernel_us": summary(kernel),
        "tensor_operations_us": summary(core),
        "bytes_moved": moved,
        "floor_us": round(moved / bandwidth, 3),
    }


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of the times, in microseconds."""
    return {
        "median": round(statistics.median(times), 2),
        "min": round(min(times), 2),
        "max": round(max(times), 2),
        "n": len(times),
    }


def main(argv: Sequence[str]) -> int:
    """Measure every combination of sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--num-nodes", type=int, nargs="+", default=[17, 33, 65, 129])
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 15])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit-us", type=float, default=100.0, help="goal at B = 32, D = 15, N = 65")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_kernels: an NVIDIA GPU is needed, torch sees none", file=sys.stderr)
        return 2
    origin, bandwidth = collect_provenance(), measured_bandwidth()
    print(
        f"memory: {bandwidth / 1e6:.2f} TB/s\n   B   D    N    kernel us (range)      tensor operations us    floor us"
    )
    goal = None
    for batch_size, depth, nodes in itertools.product(args.batch_sizes, args.depths, args.num_nodes):
        row = measure(batch_size, depth, nodes, args.repeats, bandwidth) | {"provenance": origin}
        kernel, core = row["kernel_us"], row["tensor_operations_us"]
        spread = f"{kernel['median']:8.1f} ({kernel['min']:.1f}-{kernel['max']:.1f})"
        print(
            f"{batch_size:4d}{depth:4d}{nodes:5d}  {spread:24s}{core['median']:14.1f}{row['floor_us']:16.2f}",
            flush=True,
        )
        if (batch_size, depth, nodes) == (32, 15, 65):
            goal = kernel["median"]
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    met = goal is None or goal <= args.limit_us
    print(json.dumps({"goal_row_us": goal, "limit_us": args.limit_us, "met": met, "bytes_per_us": round(bandwidth)}))
    return 0 if met else 1
