"""Decoding speed on real prompts: plain decoding, the stock DFLASH chain and DDTREE, same flags, in one run.

    .venv/bin/python -m benchmarks decode [--model M --draft D] [--quick]
    .venv/bin/python -m benchmarks decode --batch-sizes 1 2 4 8 16 32 --dtypes float32 bfloat16
    .venv/bin/python -m benchmarks decode --one-server --budgets 4 8

Systems are up together and are measured in turns, so that a slow spell of the machine hits all of them; where memory
holds fewer servers than there are systems, budgets go in groups, each with both baselines.
Idle servers sleep; the processor time that they used meanwhile is in every result line. Before any timing the
tokens of every system are compared with plain decoding's (greedy); a difference ends the run with status 1
unless `--allow-mismatch`. Result lines and a table go to `--output`, brought up to date whenever every system has
answered a dataset, so that a run that is killed leaves what it measured; the last stdout line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.decode_report import Measurement, result_lines, table
from benchmarks.harness.flags import add_adaptive_flag, add_common_flags, exit_status
from benchmarks.harness.prompts import AS_IN_PAPER, Prompt, sample_prompts
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.results import new_result, save_lines
from benchmarks.harness.systems import (
    Common,
    RunningSystem,
    System,
    groups_for,
    others_cpu_s,
    running,
    servers_that_fit,
)
from benchmarks.stage_times import StageSummary, TraceReader, summarise
from deploy.local.client import Batch, flush_cache, generate_batch
from deploy.local.pair import prepare_pair
from workers.progress import say, step

Encoded = dict[str, list[list[int]]]  # dataset -> token ids of its prompts, chat template applied


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; the defaults are the full run, `--quick` is a smoke run of minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8, 16, 32], help="DDTREE tree budgets")
    add_adaptive_flag(parser)
    parser.add_argument(
        "--one-server",
        action="store_true",
        help="ask the server that adapts for the budgets, by request, and for 0: two servers of the same flags may "
        "differ by some per cent; it learns the time of these rounds, too",
    )
    parser.add_argument("--other-draft", metavar="DRAFT", help="also trees of this drafter, at each budget")
    parser.add_argument(
        "--ngrams",
        action="store_true",
        help="also trees that know the request's own text, at each budget; with --adaptive, of that policy alone",
    )
    parser.add_argument(
        "--other-env",
        type=variable,
        metavar="NAME=VALUE",
        help="also trees of a server with this variable, at each budget; with --adaptive, of that policy alone",
    )
    parser.add_argument("--dtypes", nargs="+", help="one after another (default: that of --dtype)")
    parser.add_argument("--prompts", type=int, default=8, help="per dataset (default 8; 0: as the paper)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="requests at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--no-trace", action="store_true", help="no stage times (on a GPU they cost syncs)")
    parser.add_argument("--allow-mismatch", action="store_true", help="measure although tokens differ")
    parser.add_argument("--quick", action="store_true", help="2 prompts per dataset, 32 tokens, 1 repeat")
    parser.add_argument("--servers-at-once", type=int, help="default: as many as memory holds")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/decode-DATE.jsonl)")
    parser.set_defaults(max_total_tokens=None)
    args = parser.parse_args(argv)
    args.dtypes = args.dtypes or [args.dtype]
    if args.quick:
        args.prompts, args.max_new_tokens, args.repeats = 2, 32, 1
        args.batch_sizes = [size for size in args.batch_sizes if size <= 2] or [1]
    return args


def variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, of an environment."""
    name, mark, value = text.partition("=")
    if not (name and mark):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def encode(prompts: Sequence[Prompt], model: str, thinking: bool = True) -> Encoded:
    """Token ids of each prompt as one user turn in the model's own chat template, or what it is without thinking."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded: Encoded = {}
    for prompt in prompts:
        text = chat_text(prompt, tokenizer, thinking)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        encoded.setdefault(prompt.dataset, []).append(ids)
    return encoded


def chat_text(prompt: Prompt, tokenizer: Any, thinking: bool) -> str:
    """The prompt as one user turn in the tokenizer's chat template, up to where the answer begins."""
    options = {} if thinking else {"enable_thinking": False}
    turns = [{"role": "user", "content": prompt.text}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))


def count_mismatches(systems: Sequence[RunningSystem], encoded: Encoded, args: argparse.Namespace) -> dict[str, int]:
    """Prompts whose greedy tokens differ from plain decoding's, per system. Also warms every server up."""
    prompts = [ids for dataset in encoded.values() for ids in dataset]
    answers = {}
    for running_system in systems:
        name = running_system.system.name
        with step(f"checking and warming up {name}"):
            at_once, timeout_s = max(args.batch_sizes), args.client_timeout
            asked = running_system.system.custom_params
            batch = generate_batch(
                running_system.url, prompts, args.max_new_tokens, at_once, timeout_s, custom_params=asked
            )
        answers[name] = [one.output_ids for one in batch.generations]
    plain = answers["plain"]
    return {
        name: sum(mine != theirs for mine, theirs in zip(outputs, plain, strict=True))
        for name, outputs in answers.items()
    }


def measure_one(
    systems: Sequence[RunningSystem],
    chosen: RunningSystem,
    prompts: list[list[int]],
    batch_size: int,
    args: argparse.Namespace,
) -> tuple[Batch, StageSummary | None, float]:
    """One dataset on one system: answers, stage times, and the idle servers' processor seconds meanwhile."""
    reader = TraceReader(chosen.trace_path) if chosen.trace_path else None
    flush_cache(chosen.url)
    if reader:
        reader.mark()
    others_before = others_cpu_s(systems, chosen)
    asked, timeout_s = chosen.system.custom_params, args.client_timeout
    batch = generate_batch(chosen.url, prompts, args.max_new_tokens, batch_size, timeout_s, custom_params=asked)
    others = others_cpu_s(systems, chosen) - others_before
    return batch, summarise(reader.since_mark(), batch_size) if reader else None, others


def measure(
    systems: Sequence[RunningSystem], encoded: Encoded, args: argparse.Namespace
) -> Iterator[list[Measurement]]:
    """All repeats, one list for each dataset, systems in turns; the order rotates so that none is always first."""
    for repeat in range(args.repeats):
        for batch_size in args.batch_sizes:
            for dataset, all_prompts in encoded.items():
                prompts = all_prompts[: max(args.prompts, batch_size)] if args.prompts else all_prompts
                turn, measured = repeat % len(systems), []
                for chosen in [*systems[turn:], *systems[:turn]]:
                    what = f"repeat {repeat + 1}/{args.repeats}, batch {batch_size}, {dataset}, {chosen.system.name}"
                    with step(what):
                        batch, stages, others = measure_one(systems, chosen, prompts, batch_size, args)
                    one = Measurement(chosen.system.name, dataset, batch_size, repeat, batch, stages, others)
                    say(
                        f"{what}: {one.decode_tokens_per_s:.1f} tokens/s per request, accept length "
                        f"{one.accept_length or 1.0:.2f}"
                    )
                    measured.append(one)
                yield measured


def run(args: argparse.Namespace) -> int:
    """Start everything, check, measure, write. Returns the exit status."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    with step("reading the prompts and the tokenizer"):
        count = max(args.prompts, *args.batch_sizes) if args.prompts else AS_IN_PAPER
        chosen = sample_prompts(args.datasets, count, args.seed, args.data_folder)
        encoded = encode(chosen, pair.model, not args.no_thinking)
    args.model, args.draft = pair.model, pair.draft
    args.max_total_tokens = args.max_total_tokens or pool_tokens(encoded, args)
    settings = {key: portable(value) for key, value in vars(args).items()}
    output = args.output or new_result("decode", ".jsonl")
    lines: list[dict[str, Any]] = []
    at_once = args.servers_at_once or servers_that_fit()
    groups = groups_for(
        args.budgets,
        at_once,
        args.adaptive or None,
        one_server=args.one_server,
        other_draft=args.other_draft,
        ngrams=args.ngrams,
        environment=args.other_env,
    )
    for dtype, group in product(args.dtypes, groups):
        args.dtype, of_group = dtype, list[dict[str, Any]]()
        for of_group in measure_group(group, encoded, {**settings, "dtype": dtype}, args):
            save_lines([*lines, *of_group], table, output)
        if not of_group:
            say("tokens differ: nothing is timed. The benchmark `lossless` shows where; --allow-mismatch goes on.")
            return 1
        lines += of_group
    report(lines, settings, output)
    return 0


def measure_group(
    group: Sequence[System], encoded: Encoded, settings: dict[str, Any], args: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """The result lines of servers that are up together, again after every dataset; nothing when tokens differ."""
    provenance = {**collect_provenance(), "settings": settings}
    with running(group, Common.from_args(args, max(args.batch_sizes)), trace=not args.no_trace) as systems:
        mismatches = count_mismatches(systems, encoded, args)
        say(f"prompts whose tokens differ from plain decoding's: {mismatches}")
        if any(mismatches.values()) and not args.allow_mismatch:
            return
        measurements: list[Measurement] = []
        for more in measure(systems, encoded, args):
            measurements += more
            yield result_lines(measurements, mismatches, provenance)


def pool_tokens(encoded: Encoded, args: argparse.Namespace) -> int:
    """KV slots that the largest batch needs with answers and trees, so that no request waits or is retracted."""
    longest = max(len(ids) for prompts in encoded.values() for ids in prompts)
    nodes = 1 + max(*args.budgets, args.adaptive)
    # Two rounds' reservations: with overlap the next one is made before the last one is given back.
    needed = max(args.batch_sizes) * (longest + args.max_new_tokens + 2 * nodes)
    return max(8192, -(-needed // 1024) * 1024)


def report(lines: Sequence[dict[str, Any]], settings: dict[str, Any], output: Path) -> None:
    """The table to stdout, and one JSON object as the last line."""
    say("\n" + table(lines))
    best = max(lines, key=lambda line: line["ratio_to_plain"] or 0.0)
    keys = ("system", "dataset", "batch_size", "ratio_to_plain", "ratio_to_chain")
    print(json.dumps({"output": output.name, "best": {key: best[key] for key in keys}, "settings": settings}))


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("decode", lambda: run(args))
