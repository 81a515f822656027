"""Is DDTREE's greedy output plain decoding's, token for token? Many prompts, several budgets and loads.

    .venv/bin/python -m benchmarks lossless [--model M --draft D] [--prompts 20] [--budgets 1 7 16 63]

The reference is a plain server answering one request at a time, unless told otherwise. Each budget has a DDTREE
server of its own, asked at each concurrency. A difference is reported with the target's log-probability margin at the
first token that differs; within --near-tie it counts as a near tie, else as a mismatch. Exit status 1 on a mismatch.
The result files are written after each case; `is_complete` tells whether all of them are in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, System, running
from ddtree_sglang.core.acceptance_stats import accept_length
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import TIMEOUT_S, flush_cache, generate_batch, target_logprobs
from deploy.local.divergence import NEAR_TIE, Divergence, find_divergence
from deploy.local.pair import prepare_pair
from workers.progress import say, step


@dataclass(frozen=True)
class Case:
    """One budget at one concurrency."""

    budget: int
    concurrency: int
    num_prompts: int
    num_tokens: int
    accept_length: float
    divergences: tuple[Divergence, ...]

    @property
    def num_mismatches(self) -> int:
        """Prompts that differ by more than a near tie."""
        return sum(not one.is_near_tie for one in self.divergences)

    @property
    def num_near_ties(self) -> int:
        """Prompts that differ by a near tie."""
        return sum(one.is_near_tie for one in self.divergences)


@dataclass(frozen=True)
class Reference:
    """Prompts and plain decoding's answers to them."""

    url: str
    names: list[str]
    prompts: list[list[int]]
    answers: list[tuple[int, ...]]
    timeout_s: float = TIMEOUT_S


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; by default 60 prompts of 128 tokens, budgets 1, 7, 16 and 63, one and eight at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 7, 16, 63])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=20, help="prompts per dataset (default 20, so 60 in all)")
    parser.add_argument(
        "--reference-concurrency", type=int, default=1, help="requests at once at the plain server (default 1)"
    )
    parser.add_argument(
        "--near-tie",
        type=float,
        default=NEAR_TIE,
        help=f"log-probability that rounding may turn over (default {NEAR_TIE}: float32; bfloat16 needs about 0.25)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/lossless-DATE.json)")
    return parser.parse_args(argv)


def compare_case(
    url: str, budget: int, concurrency: int, reference: Reference, limit: int, tolerance: float = NEAR_TIE
) -> Case:
    """Ask the DDTREE server at `url` and compare every answer with the reference."""
    flush_cache(url)
    batch = generate_batch(url, reference.prompts, limit, concurrency, reference.timeout_s)
    logprobs = partial(target_logprobs, reference.url)
    found = [
        find_divergence(name, ids, plain, answer.output_ids, logprobs, tolerance)
        for name, ids, plain, answer in zip(
            reference.names, reference.prompts, reference.answers, batch.generations, strict=True
        )
    ]
    return Case(
        budget=budget,
        concurrency=concurrency,
        num_prompts=len(reference.prompts),
        num_tokens=batch.num_tokens,
        accept_length=accept_length(batch.num_tokens, batch.num_rounds) or 1.0,
        divergences=tuple(one for one in found if one is not None),
    )


def run(args: argparse.Namespace) -> int:
    """All cases; returns the exit status."""
    prompts = sample_prompts(args.datasets, args.prompts, args.seed, args.data_folder)
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    with step("reading the tokenizer"):
        encoded = encode(prompts, pair.model, not args.no_thinking)
    names = [prompt.key for dataset in encoded for prompt in prompts if prompt.dataset == dataset]
    ids = [one for dataset in encoded.values() for one in dataset]
    common = Common.from_args(args, max(*args.concurrency, args.reference_concurrency))
    output = args.output or new_result("lossless", ".json")
    cases: list[Case] = []
    with running([System("plain", None)], common) as (plain,):
        at_once = args.reference_concurrency
        with step(f"plain decoding of {len(ids)} prompts, {at_once} at once"):
            batch = generate_batch(plain.url, ids, args.max_new_tokens, at_once, args.client_timeout)
        answers = [one.output_ids for one in batch.generations]
        reference = Reference(plain.url, names, ids, answers, args.client_timeout)
        for budget in args.budgets:
            with running([System.of_budget(budget)], common, trace=False) as (server,):
                for concurrency in args.concurrency:
                    with step(f"budget {budget}, {concurrency} at once"):
                        case = compare_case(
                            server.url, budget, concurrency, reference, args.max_new_tokens, args.near_tie
                        )
                    cases.append(case)
                    save(cases, args, output)
                    say(
                        f"budget {budget}, {concurrency} at once: {case.num_mismatches} mismatches, "
                        f"{case.num_near_ties} near ties, accept length {case.accept_length:.2f}"
                    )
    return conclude(cases, output)


def report(cases: Sequence[Case]) -> str:
    """Markdown: one row per case, then every difference."""
    rows = [
        "| budget | at once | prompts | tokens | mismatches | near ties | accept length |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        rows.append(
            f"| {case.budget} | {case.concurrency} | {case.num_prompts} | {case.num_tokens} "
            f"| {case.num_mismatches} | {case.num_near_ties} | {case.accept_length:.2f} |"
        )
    for case in cases:
        for one in case.divergences:
            kind = "near tie" if one.is_near_tie else "MISMATCH"
            where = f"{one.prompt}, budget {case.budget}, {case.concurrency} at once, token {one.position}"
            tokens = f"plain {one.plain_token}, DDTREE {one.other_token}, margin {one.margin}"
            rows.append(f"\n{kind}: {where}: {tokens}")
    return "\n".join(rows)


def save(cases: Sequence[Case], args: argparse.Namespace, output: Path) -> None:
    """JSON and Markdown of the cases so far to the results folder."""
    record: dict[str, Any] = {
        "provenance": collect_provenance(),
        "settings": {key: portable(value) for key, value in vars(args).items()},
        "is_complete": len(cases) == len(args.budgets) * len(args.concurrency),
        "cases": [
            {**asdict(case), "num_mismatches": case.num_mismatches, "num_near_ties": case.num_near_ties}
            for case in cases
        ],
    }
    replace_text(output, json.dumps(record, indent=1) + "\n")
    replace_text(output.with_suffix(".md"), report(cases) + "\n")


def conclude(cases: Sequence[Case], output: Path) -> int:
    """The table to stdout, and one JSON object as the last line; returns the exit status."""
    say(report(cases))
    mismatches = sum(case.num_mismatches for case in cases)
    compared = sum(case.num_prompts for case in cases)
    print(json.dumps({"output": output.name, "compared": compared, "mismatches": mismatches}))
    return 1 if mismatches else 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("lossless", lambda: run(args), failed=2)
