"""What a feature of requests costs in a DDTREE round: stage times with it and without, at one server, in turns.

    .venv/bin/python -m benchmarks feature_cost [--model M --draft D] [--features penalties] [--batch-sizes 1 4]

Same prompts, same lengths, one answer of a feature after one without it, `--repeats` times. What a round takes depends
on its shapes, not on its tokens. On a GPU the trace waits for the device after each stage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.provenance import REPO, collect_provenance, portable
from benchmarks.harness.systems import Common, RunningSystem, System, running
from benchmarks.stage_times import StageSummary, TraceReader, summarise
from deploy.local.client import post
from deploy.local.pair import prepare_pair
from workers.progress import say, step

FEATURES: dict[str, dict[str, Any]] = {
    "penalties": {
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        "repetition_penalty": 1.05,
        "min_new_tokens": 8,
    },
}
"""Name -> the sampling parameters that a request has with it, and has not without."""


@dataclass(frozen=True)
class Cost:
    """Rounds with a feature beside rounds without it, medians in ms; `share` is of the round without it."""

    feature: str
    batch_size: int
    without: StageSummary
    having: StageSummary

    @property
    def added_ms(self) -> float:
        """Of the stages that are no model's forward: where features of requests are."""
        return _beside_forwards(self.having) - _beside_forwards(self.without)

    @property
    def share(self) -> float:
        """What is added, in rounds without the feature."""
        return self.added_ms / self.without.round_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {"bench": "feature_cost", **asdict(self), "added_ms": self.added_ms, "share": self.share}


def _beside_forwards(summary: StageSummary) -> float:
    return summary.stage_ms["accept"] + summary.stage_ms["build"] + summary.stage_ms["commit"]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=list(FEATURES))
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/feature-cost-DATE.jsonl)")
    return parser.parse_args(argv)


def ask_together(url: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, feature: dict[str, Any]) -> None:
    """One batch of requests that start together and end together."""

    def ask(prompt: Sequence[int]) -> None:
        sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens, "ignore_eos": True, **feature}
        post(url, "/generate", {"input_ids": list(prompt), "sampling_params": sampling})

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(ask, prompts))


def measure(server: RunningSystem, feature: str, prompts: Sequence[Sequence[int]], args: argparse.Namespace) -> Cost:
    """Both kinds of rounds of one batch size, in turns; the first answers of each kind are left out."""
    assert server.trace_path is not None, "a DDTREE server is traced"
    reader = TraceReader(server.trace_path)
    rounds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for turn in range(args.repeats + 1):
        for has_it in (False, True):
            reader.mark()
            ask_together(server.url, prompts, args.max_new_tokens, FEATURES[feature] if has_it else {})
            rounds[has_it] += reader.since_mark() if turn else []
    found = [summarise(rounds[has_it], len(prompts)) for has_it in (False, True)]
    if found[0] is None or found[1] is None:
        raise ValueError(f"no round had all {len(prompts)} requests; ask for more tokens (--max-new-tokens)")
    return Cost(feature, len(prompts), found[0], found[1])


def run(args: argparse.Namespace) -> int:
    """All features at all batch sizes."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    most = max(args.batch_sizes)
    encoded = encode(sample_prompts(args.datasets, most, args.seed), pair.model)
    prompts = [one for dataset in encoded.values() for one in dataset][:most]
    output = args.output or REPO / f"benchmarks/results/feature-cost-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
    origin = {
        "provenance": collect_provenance(),
        "settings": {key: portable(value) for key, value in vars(args).items()},
    }
    with running([System(f"ddtree-{args.budget}", "DDTREE", args.budget)], Common.from_args(args, most)) as (server,):
        for feature in args.features:
            for batch_size in args.batch_sizes:
                with step(f"{feature}, {batch_size} at once"):
                    cost = measure(server, feature, prompts[:batch_size], args)
                say(
                    f"{feature}, {batch_size} at once: {cost.added_ms:.2f} ms of a round of "
                    f"{cost.without.round_ms:.1f} ms, {100 * cost.share:.1f} %"
                )
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(cost.to_json() | origin) + "\n")
    print(json.dumps({"output": output.name}))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("feature_cost", lambda: run(args))
