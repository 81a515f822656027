"""How many tokens a round brings, chain beside trees: accept lengths, their histogram, surrogate against acceptance.

    .venv/bin/python -m benchmarks acceptance [--model M --draft D] [--budgets 7 16 64] [--output FILE.jsonl]

No number here depends on the clock, so servers run one after another and beside anything else. The smallest budget is
the chain's by default: as many drafted nodes as its block proposes, the comparison of equal budgets. The histogram is
SGLang's own, per request, for chain and trees alike. Answers are compared with plain decoding's. With the `--output` of
a run that was broken off, what is missing is asked; `--traces` must then name the same folder, too. Above temperature 0
answers are drawn, by every system anew, and none is compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.acceptance_report import table, with_intervals
from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import Prompt, sample_prompts
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.results import new_result, save_lines
from benchmarks.harness.systems import Common, RunningSystem, System, running
from benchmarks.harness.walks import read_walks
from benchmarks.stage_times import TraceReader
from benchmarks.surrogate import surrogate_record
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import Generation, flush_cache, generate_batch
from deploy.local.pair import prepare_pair
from workers.progress import say, step

Asked = dict[str, list[tuple[str, list[int]]]]
"""Dataset -> key and token ids of each of its prompts."""
DECISIVE = ("model", "draft", "dtype", "max_new_tokens", "no_thinking", "temperature")
"""Settings that decide what is answered, and in how many rounds."""
Key = tuple[str, str]
"""System and dataset of a result line."""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--budgets", type=int, nargs="+", help="of the trees (default: the chain's, 16 and 64)")
    parser.add_argument("--prompts", type=int, default=20, help="per dataset (default 20; 0: as the paper)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; above, answers are not compared")
    parser.add_argument("--at-once", type=int, default=4, help="requests at once; changes no number (default 4)")
    parser.add_argument("--traces", type=Path, help="folder that keeps the trees' traces (default: beside the output)")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/acceptance-DATE.jsonl)")
    return parser.parse_args(argv)


def chain_budget(draft: str) -> int:
    """Drafted tokens of a round of the stock chain: the drafter's block without its first token, which is known.

    Raises:
        ValueError: the drafter's config.json names no block size.
    """
    config = json.loads((Path(draft) / "config.json").read_text(encoding="utf-8"))
    size = config.get("block_size") or (config.get("dflash_config") or {}).get("block_size")
    if not isinstance(size, int) or size < 2:
        raise ValueError(f"config.json of a DFlash drafter must have a block_size above 1, got {size!r} in {draft}.")
    return size - 1


def systems_of(budgets: Sequence[int]) -> list[System]:
    """Plain decoding first, whose answers the others are held to, then the chain, then trees."""
    trees = [System.of_budget(budget) for budget in sorted(set(budgets))]
    return [System("plain", None), System("dflash", "DFLASH"), *trees]


def read_lines(output: Path, asked: Asked, settings: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """What an earlier run with this output measured.

    Raises:
        ValueError: it asked other prompts, or with settings that decide what is answered.
    """
    text = output.read_text(encoding="utf-8") if output.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line]
    known = {(line["system"], line["dataset"]): line for line in lines if line["kind"] == "acceptance"}
    for (_, dataset), line in known.items():
        for name in DECISIVE:
            earlier = line["provenance"]["settings"].get(name)
            if earlier != settings[name]:
                raise ValueError(f"{output} was begun with {name} {earlier!r}, not {settings[name]!r}; name another.")
        if [one["key"] for one in line["prompts"]] != [key for key, _ in asked.get(dataset, [])]:
            raise ValueError(f"{output} holds answers to other prompts of {dataset}; name another --output.")
    return known


def ask(one: RunningSystem, dataset: str, asked: Asked, traces: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A result line of a dataset on a system; its rounds go to the folder of traces."""
    reader = TraceReader(one.trace_path) if one.trace_path else None
    flush_cache(one.url)
    if reader:
        reader.mark()
    prompts = [ids for _, ids in asked[dataset]]
    how = (args.max_new_tokens, args.at_once, args.client_timeout, args.temperature)
    batch = generate_batch(one.url, prompts, *how)
    if reader:
        text = "".join(json.dumps(line) + "\n" for line in reader.since_mark())
        replace_text(trace_file(traces, one.system.name, dataset), text)
    answers = zip(asked[dataset], batch.generations, strict=True)
    return {
        "kind": "acceptance",
        "system": one.system.name,
        "dataset": dataset,
        "budget": one.system.budget,
        "dtype": args.dtype,
        "temperature": args.temperature,
        "prompts": [{"key": key, **_answer(answer)} for (key, _), answer in answers],
    }


def _answer(answer: Generation) -> dict[str, Any]:
    """What is kept of an answer; the digest tells whether two systems gave the same tokens."""
    digest = hashlib.sha256(json.dumps(answer.output_ids).encode()).hexdigest()
    return {
        "answer": digest[:16],
        "tokens": len(answer.output_ids),
        "rounds": answer.num_rounds,
        "histogram": list(answer.histogram),
    }


def trace_file(folder: Path, system: str, dataset: str) -> Path:
    """Where the rounds of a dataset on a system are kept."""
    return folder / f"{system}-{dataset.replace('/', '-')}.trace.jsonl"


def measure(
    systems: Sequence[System], asked: Asked, known: dict[Key, dict[str, Any]], traces: Path, args: argparse.Namespace
) -> Iterable[dict[str, Any]]:
    """The lines that are missing, one after another."""
    common = Common.from_args(args, args.at_once)
    for system in systems:
        missing = [dataset for dataset in asked if (system.name, dataset) not in known]
        if not missing:
            continue
        with running([system], common) as (one,):
            for dataset in missing:
                with step(f"{system.name}, {dataset}"):
                    yield ask(one, dataset, asked, traces, args)


def surrogate_lines(systems: Sequence[System], asked: Asked, traces: Path) -> list[dict[str, Any]]:
    """A line per tree, of all datasets together, once each of them has its trace."""
    lines = []
    for system in systems:
        files = [trace_file(traces, system.name, dataset) for dataset in asked]
        if system.traced and all(file.exists() for file in files):
            lines.append({**surrogate_record(read_walks(files)), "system": system.name, "datasets": list(asked)})
    return lines


def run(args: argparse.Namespace) -> int:
    """Ask every system, write after each dataset; 1 when an answer differs from plain decoding's."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    args.budgets = args.budgets or [chain_budget(pair.draft), 16, 64]
    prompts = sample_prompts(args.datasets, args.prompts, args.seed, args.data_folder)
    asked = with_keys(prompts, encode(prompts, pair.model, not args.no_thinking))
    output = args.output or new_result("acceptance", ".jsonl")
    traces = args.traces or output.with_suffix(".traces")
    traces.mkdir(parents=True, exist_ok=True)
    systems = systems_of(args.budgets)
    origin = {**collect_provenance(), "settings": {name: portable(value) for name, value in vars(args).items()}}
    lines = read_lines(output, asked, origin["settings"])
    for line in measure(systems, asked, lines, traces, args):
        lines[line["system"], line["dataset"]] = {**line, "provenance": origin}
        save_lines(with_intervals(list(lines.values())), table, output)
    found = surrogate_lines(systems, asked, traces)
    surrogates = [{**line, "dtype": args.dtype, "provenance": origin} for line in found]
    complete = with_intervals(list(lines.values()))
    save_lines([*complete, *surrogates], table, output)
    say("\n" + table([*complete, *surrogates]))
    unlike = sum(line["unlike_plain"] or 0 for line in complete)
    print(json.dumps({"output": output.name, "prompts_unlike_plain": unlike, "settings": origin["settings"]}))
    return 1 if unlike else 0


def with_keys(prompts: Sequence[Prompt], encoded: dict[str, list[list[int]]]) -> Asked:
    """Token ids beside the keys of their prompts, by dataset."""
    keys: dict[str, list[str]] = {}
    for prompt in prompts:
        keys.setdefault(prompt.dataset, []).append(prompt.key)
    return {dataset: list(zip(keys[dataset], ids, strict=True)) for dataset, ids in encoded.items()}


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("acceptance", lambda: run(args))
