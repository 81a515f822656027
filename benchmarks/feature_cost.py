"""What a feature of requests costs in a DDTREE round: rounds with it and without, in turns, at the same server.

    .venv/bin/python -m benchmarks feature_cost [--model M --draft D] [--features penalties ...] [--batch-sizes 1 4]

Same prompts, same lengths, one answer of a feature after one without it, `--repeats` times. What a round takes depends
on its shapes, not on its tokens. A feature is charged with the stages that it works in, and with the time between a
round and the next, in which the scheduler takes in what a round made. The two rows `unused` are of requests without
any feature: at a server where features are switched on, or adapters loaded, beside a server where nothing is. On a GPU
the trace waits for the device after each stage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.request_features import ADAPTER, ALL_STAGES, BARE, ENABLED, FEATURES, LORA, Feature
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, RunningSystem, System, running
from benchmarks.stage_times import StageSummary, TraceReader, summarise
from ddtree_sglang.core.acceptance_stats import accept_length
from ddtree_sglang.demo.random_adapter import shapes_of, write_adapter
from deploy.local.client import post
from deploy.local.pair import prepare_pair
from workers.progress import say, step

UNUSED = "unused"
ADAPTER_RANK, ADAPTER_SCALE = 8, 0.02
"""So small that answers stay sentences; what a round takes does not hang on it."""
NO_FEATURE = Feature(stages=ALL_STAGES)


@dataclass(frozen=True)
class Rounds:
    """Rounds of one kind and batch size, medians in ms. `between_ms`: from the end of a round to the next one's start.

    `accept_length`: tokens per round and request.
    """

    summary: StageSummary
    between_ms: float
    accept_length: float

    @property
    def round_ms(self) -> float:
        """From one round's end to the next one's."""
        return self.summary.round_ms + self.between_ms

    def spent_ms(self, stages: Sequence[str]) -> float:
        """Time of these stages."""
        times = {**self.summary.stage_ms, "between": self.between_ms}
        return sum(times[name] for name in stages)


@dataclass(frozen=True)
class Cost:
    """Rounds with a feature beside rounds without it. `share` is of the round without it."""

    feature: str
    batch_size: int
    stages: tuple[str, ...]
    without: Rounds
    having: Rounds

    @property
    def added_ms(self) -> float:
        """In the stages where the feature works."""
        return self.having.spent_ms(self.stages) - self.without.spent_ms(self.stages)

    @property
    def share(self) -> float:
        """What is added, in rounds without the feature."""
        return self.added_ms / self.without.round_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {"bench": "feature_cost", **asdict(self), "added_ms": self.added_ms, "share": self.share}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    names = [UNUSED, *FEATURES, "lora"]
    parser.add_argument("--features", nargs="+", default=names, choices=names)
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/feature-cost-DATE.jsonl)")
    return parser.parse_args(argv)


def ask_together(url: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, feature: Feature, has: bool) -> None:
    """One batch of requests that start together and end together, with the feature or without."""
    own = feature.sampling if has else {}
    sampling = {"max_new_tokens": max_new_tokens, "ignore_eos": True, **feature.beside, **own}

    def ask(prompt: Sequence[int]) -> None:
        body = feature.body if has else {}
        post(url, "/generate", {"input_ids": list(prompt), "sampling_params": sampling, **body})

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(ask, prompts))


def gaps_ms(answers: Sequence[Sequence[Mapping[str, Any]]], batch_size: int) -> list[float]:
    """Between rounds of all requests: from one round's end to the next one's start. A list of rounds per answer."""
    return [
        1e3 * (after["ended_s"] - before["ended_s"]) - after["total_ms"]
        for rounds in answers
        for before, after in itertools.pairwise(rounds)
        if before["batch_size"] == after["batch_size"] == batch_size
    ]


def rounds_of(answers: Sequence[Sequence[dict[str, Any]]], batch_size: int) -> Rounds:
    """What the rounds of all requests took; ValueError where there are not two in a row."""
    gaps = gaps_ms(answers, batch_size)
    summary = summarise([one for rounds in answers for one in rounds], batch_size)
    if summary is None or not gaps:
        raise ValueError(f"no two rounds had all {batch_size} requests; ask for more tokens (--max-new-tokens)")
    tokens = [sum(one["commit_lens"]) for rounds in answers for one in rounds if one["batch_size"] == batch_size]
    return Rounds(summary, median(gaps), accept_length(sum(tokens), len(tokens) * batch_size) or 1.0)


def measure(
    name: str,
    feature: Feature,
    servers: tuple[RunningSystem, RunningSystem],
    prompts: Sequence[Sequence[int]],
    args: argparse.Namespace,
) -> Cost:
    """Rounds without the feature at the first server, and with it at the second one, in turns.

    The first answers of each kind are left out: they fill caches.
    """
    answers: tuple[list[list[dict[str, Any]]], ...] = ([], [])
    for turn in range(args.repeats + 1):
        for has_it, server in enumerate(servers):
            assert server.trace_path is not None, "a DDTREE server is traced"
            reader = TraceReader(server.trace_path)
            reader.mark()
            ask_together(server.url, prompts, args.max_new_tokens, feature, bool(has_it))
            if turn:
                answers[has_it].append(reader.since_mark())
    without, having = (rounds_of(one, len(prompts)) for one in answers)
    return Cost(name, len(prompts), feature.stages, without, having)


Measured = Iterator[Cost]


def costs(args: argparse.Namespace, prompts: Sequence[Sequence[int]]) -> Measured:
    """All rows: those of requests' features, then those of adapters, each with servers of their own."""
    asked = {name: FEATURES[name] for name in args.features if name in FEATURES}
    if asked or UNUSED in args.features:
        yield from _costs(args, prompts, "switched on", ENABLED, asked)
    if "lora" in args.features:
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder) / ADAPTER
            write_adapter(adapter, shapes_of(Path(args.model)), ADAPTER_RANK, args.seed, ADAPTER_SCALE)
            flags = ("--lora-paths", f"{ADAPTER}={adapter}", "--max-lora-rank", str(ADAPTER_RANK))
            yield from _costs(args, prompts, "adapters loaded", flags, {"lora": LORA})


def _costs(
    args: argparse.Namespace,
    prompts: Sequence[Sequence[int]],
    state: str,
    flags: tuple[str, ...],
    features: Mapping[str, Feature],
) -> Measured:
    """Rows of a server with `flags`; what nobody asks for is compared with a server without."""
    enabled = System(state.replace(" ", "-"), "DDTREE", args.budget, "fixed", flags)
    bare = [System("bare", "DDTREE", args.budget, "fixed", BARE)] if UNUSED in args.features else []
    with running([*bare, enabled], Common.from_args(args, len(prompts))) as started:
        *others, server = started
        for batch_size in args.batch_sizes:
            for other in others:
                name = f"{UNUSED}: {state}"
                yield _told(name, NO_FEATURE, (other, server), prompts[:batch_size], args)
            for name, feature in features.items():
                yield _told(name, feature, (server, server), prompts[:batch_size], args)


def _told(name: str, *rest: Any) -> Cost:
    with step(name):
        cost = measure(name, *rest)
    without = cost.without.round_ms
    say(f"{name}, {cost.batch_size} at once: {cost.added_ms:+.2f} ms of {without:.1f} ms, {100 * cost.share:+.1f} %")
    return cost


def run(args: argparse.Namespace) -> int:
    """All features at all batch sizes."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    most = max(args.batch_sizes)
    encoded = encode(sample_prompts(args.datasets, most, args.seed, args.data_folder), pair.model, not args.no_thinking)
    prompts = [one for dataset in encoded.values() for one in dataset][:most]
    output = args.output or new_result("feature-cost", ".jsonl")
    origin = {
        "provenance": collect_provenance(),
        "settings": {key: portable(value) for key, value in vars(args).items()},
    }
    for cost in costs(args, prompts):
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cost.to_json() | {"load_average": os.getloadavg()[0]} | origin) + "\n")
    print(json.dumps({"output": output.name}))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("feature_cost", lambda: run(args))
