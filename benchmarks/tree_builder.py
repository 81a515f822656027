"""Time of one draft tree: the batched builder against the heap oracle, and the stages around it.

    python -m benchmarks tree_builder [--quick] [--output benchmarks/results/tree_builder.jsonl]

For each vocabulary V, batch B, depth D and node count N (K = N - 1 candidates, the loss-free choice): both
trees are checked equal, then timed in turn, so that a slow spell of the machine hits both. So are both builders of a
law of pairs, with the 16 first candidates and made-up conditionals. Top-k extraction
from [B, D, V] logits is timed apart from building; mask, walk and commit are timed on the built tree.
Logits are synthetic: each position has a Zipf law over a random order of the vocabulary, with an exponent
of its own, so that some positions are nearly certain and others wide open.

Wall time suffers from whatever else the machine runs, so each timing carries the CPU time of the calling thread
too, which hardly does; the ratio in the table is of CPU times. That holds for one thread, the default: these tensors
are too small to gain from more. The load average is recorded with the rows.

One JSON line per row goes to the output file as it is measured, a table to stdout, and the last line of stdout is
one JSON object. The heap's time includes copying the candidates to Python lists, as any host builder has to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import collect_provenance
from ddtree_sglang.core import (
    DraftTree,
    ancestor_mask,
    build_draft_tree,
    build_draft_tree_heap,
    commit_plan,
    flat_tree_mask,
    layout_draft_tree,
    walk_tree,
)

PREFIX_LEN = 512  # of every request, for the stages that write the flat mask
PAIR_CANDIDATES = 16  # of a law of pairs: what published selectors are trained for

OTHER_STAGES = ("build_pairs", "pairs_heap", "layout", "flat_mask", "walk", "commit_plan")


@dataclass(frozen=True)
class Timing:
    """Time of one call, in microseconds: wall time, and the median CPU time of the calling thread."""

    median_us: float
    p10_us: float
    p90_us: float
    min_us: float
    cpu_us: float
    num_samples: int


@dataclass(frozen=True)
class Sizes:
    """One row of the benchmark."""

    vocab: int
    batch_size: int
    num_nodes: int
    depth: int

    @property
    def num_candidates(self) -> int:
        return min(self.num_nodes - 1, self.vocab)


def time_in_turn(calls: dict[str, Callable[[], object]], max_seconds: float) -> dict[str, Timing]:
    """Call each in turn, round after round, for about `max_seconds` in all; the first two do not count."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    warm_up, started = 2, time.perf_counter()
    for round_number in range(200 + warm_up):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.thread_time()
            call()
            if round_number >= warm_up:
                samples[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
        if round_number >= warm_up + 7 and time.perf_counter() - started > max_seconds:
            break
    return {name: summarize(values) for name, values in samples.items()}


def summarize(values: list[tuple[float, float]]) -> Timing:
    """Statistics of pairs of wall and CPU seconds."""
    walls, cpus = ([pair[i] * 1e6 for pair in values] for i in range(2))
    deciles = statistics.quantiles(walls, n=10, method="inclusive")
    return Timing(
        median_us=round(statistics.median(walls), 1),
        p10_us=round(deciles[0], 1),
        p90_us=round(deciles[-1], 1),
        min_us=round(min(walls), 1),
        cpu_us=round(statistics.median(cpus), 1),
        num_samples=len(values),
    )


def synthetic_logits(batch_size: int, depth: int, vocab: int) -> torch.Tensor:
    """[B, D, V] float32, Zipf-like in a random order per request."""
    generator = torch.Generator().manual_seed(vocab + depth)
    ranks = torch.arange(1, vocab + 1, dtype=torch.float32).log()
    exponents = 1.05 + 2.0 * torch.rand(batch_size, depth, 1, generator=generator)
    logits = torch.empty(batch_size, depth, vocab)
    for b in range(batch_size):
        logits[b] = -exponents[b] * ranks[torch.randperm(vocab, generator=generator)]
    return logits.add_(torch.rand(batch_size, depth, vocab, generator=generator), alpha=0.5)


def top_candidates(logits: torch.Tensor, num_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities [B, D, K] over the whole vocabulary, without writing [B, D, V] once more."""
    values, ids = torch.topk(logits, num_candidates, dim=-1)
    return ids, values - torch.logsumexp(logits, dim=-1, keepdim=True)


def pair_law(ids: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first K candidates, and `[B, D, K, K]` conditionals that raise and lower them by the parent."""
    ids, logprobs = ids[..., :PAIR_CANDIDATES], logprobs[..., :PAIR_CANDIDATES]
    change = torch.randn(*ids.shape, ids.shape[2], generator=torch.Generator().manual_seed(1))
    covered = logprobs.logsumexp(-1)[..., None, None]
    return ids, logprobs, (logprobs.unsqueeze(2) + change).log_softmax(-1) + covered


def assert_equal_trees(tree: DraftTree, oracle: DraftTree) -> None:
    """Timing a wrong tree would be worth nothing."""
    for field in ("token_ids", "parents", "depths", "logprobs"):
        if not torch.equal(getattr(tree, field), getattr(oracle, field)):
            raise SystemExit(f"the builders disagree in {field}; nothing was timed")


def measure(sizes: Sizes, logits: torch.Tensor, max_seconds: float) -> dict[str, Timing]:
    """Every stage of one row."""
    num_nodes, depth = sizes.num_nodes, sizes.depth
    ids, logprobs = top_candidates(logits, sizes.num_candidates)
    roots = torch.zeros(sizes.batch_size, dtype=torch.int64)
    prefix_lens = torch.full((sizes.batch_size,), PREFIX_LEN)
    tree = build_draft_tree(ids, logprobs, roots, num_nodes)
    tree.check_invariants()
    assert_equal_trees(tree, build_draft_tree_heap(ids, logprobs, roots, num_nodes))
    few_ids, few_logprobs, pairs = pair_law(ids, logprobs)
    of_pairs = few_ids, few_logprobs, roots, num_nodes, pairs
    assert_equal_trees(build_draft_tree(*of_pairs), build_draft_tree_heap(*of_pairs))
    # The target agrees with a third of the nodes, so that walks have some length.
    target_ids = torch.randint(3, tree.token_ids.shape, generator=torch.Generator().manual_seed(0))
    target_ids = torch.where(target_ids == 0, tree.token_ids[:, 1:2], ids[:, 0, :1].expand_as(target_ids))
    accepted = walk_tree(tree, target_ids, depth + 1)
    total = PREFIX_LEN * sizes.batch_size

    timings = time_in_turn(
        {
            "build": lambda: build_draft_tree(ids, logprobs, roots, num_nodes),
            "build_heap": lambda: build_draft_tree_heap(ids, logprobs, roots, num_nodes),
            "build_pairs": lambda: build_draft_tree(*of_pairs),
            "pairs_heap": lambda: build_draft_tree_heap(*of_pairs),
            "layout": lambda: layout_draft_tree(tree, prefix_lens),
            "ancestors": lambda: ancestor_mask(tree.parents, depth),
            "flat_mask": lambda: flat_tree_mask(ancestor_mask(tree.parents, depth), prefix_lens, total),
            "walk": lambda: walk_tree(tree, target_ids, depth + 1),
            "commit_plan": lambda: commit_plan(accepted),
        },
        max_seconds,
    )
    return timings | time_in_turn({"top_k": lambda: top_candidates(logits, sizes.num_candidates)}, max_seconds / 2)


def table_row(sizes: Sizes, timings: dict[str, Timing]) -> str:
    """One line: CPU time and wall time of both builders, CPU time of the rest."""

    def cell(stage: str) -> str:
        timing = timings[stage]
        return f"{timing.cpu_us:8.0f} {timing.median_us:.0f} ({timing.p10_us:.0f}-{timing.p90_us:.0f})".ljust(32)

    ratio = timings["build_heap"].cpu_us / timings["build"].cpu_us
    others = "".join(f"{timings[s].cpu_us:12.0f}" for s in OTHER_STAGES)
    return (
        f"{sizes.vocab:7d}{sizes.batch_size:4d}{sizes.num_nodes:5d}{sizes.depth:4d}  "
        f"{cell('build')}{cell('build_heap')}{ratio:6.2f}x{others}{timings['top_k'].cpu_us:12.0f}"
    )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabs", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--num-nodes", type=int, nargs="+", default=[17, 65, 257])
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 15])
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long to time each row")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; CPU times need 1")
    parser.add_argument("--quick", action="store_true", help="one small row, to see that it works")
    parser.add_argument("--output", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.vocabs, arguments.batch_sizes, arguments.num_nodes = [1000], [2], [17]
        arguments.depths, arguments.seconds = [7], 0.1
    return arguments


def measure_all(arguments: argparse.Namespace, origin: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure and print every combination of sizes; one row each, as soon as it is there."""
    started = time.monotonic()
    for vocab, batch_size, depth in itertools.product(arguments.vocabs, arguments.batch_sizes, arguments.depths):
        logits = synthetic_logits(batch_size, depth, vocab)
        for num_nodes in arguments.num_nodes:
            sizes = Sizes(vocab, batch_size, num_nodes, depth)
            timings = measure(sizes, logits, arguments.seconds)
            print(f"{table_row(sizes, timings)}{time.monotonic() - started:12.0f}", flush=True)
            row = {"bench": "tree_builder", **asdict(sizes), "num_candidates": sizes.num_candidates}
            stages = {stage: asdict(timing) for stage, timing in timings.items()}
            yield row | {"prefix_len": PREFIX_LEN, "stages": stages, "provenance": origin}


def main(argv: Sequence[str]) -> int:
    """Measure every combination of sizes; the exit status is 0."""
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    origin = collect_provenance() | {"num_threads": torch.get_num_threads()}
    print("times in microseconds: CPU, then median wall time (10th-90th percentile); later columns CPU;")
    print("flat_mask includes the ancestor mask")
    print(f"{'V':>7}{'B':>4}{'N':>5}{'D':>4}  {'build':>8}{'':24}{'heap':>8}{'':24}{'ratio':>7}", end="")
    print("".join(f"{name:>12}" for name in (*OTHER_STAGES, "top_k", "s so far")))
    ratios = []
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for row in measure_all(arguments, origin):
        ratios.append(row["stages"]["build_heap"]["cpu_us"] / row["stages"]["build"]["cpu_us"])
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    summary = {"bench": "tree_builder", "num_rows": len(ratios), "median_heap_to_build": statistics.median(ratios)}
    print(json.dumps(summary | {"provenance": origin}))
    return 0
