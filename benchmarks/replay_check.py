"""Hold the replay simulator to real servers: rates of plain decoding, the chain and trees, predicted and measured.

    python -m benchmarks replay_check RECORDING

RECORDING is what `record_replay` wrote for the same prompts. Costs are measured on the server by `ddtree calibrate`'s
own asking. A wave is some prompts at once, none replaced; its decoding time is the time of all tokens less the time of
one token each, so prompts do not count. Seconds of a busy machine say little, so ratios to plain decoding are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.provenance import collect_provenance
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, RunningSystem, System, running
from ddtree_sglang.calibration.asking import Asker, Plan, calibrate, table_of
from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.simulator.costs import TableCosts, known_model
from ddtree_sglang.simulator.recording import Answer, load_answers
from ddtree_sglang.simulator.replay import System as Simulated
from ddtree_sglang.simulator.replay import replay_wave
from ddtree_sglang.simulator.systems import Adaptive, Chain, FixedTree, Plain
from ddtree_sglang.viewer.top import Server
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import flush_cache, post
from deploy.local.pair import prepare_pair
from workers.progress import say, step

WORDS = 24
"""Of a prompt by which costs are measured."""
Prompts = dict[str, list[int]]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; the defaults take some minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("recording", type=Path)
    add_common_flags(parser)
    parser.add_argument("--budget", type=int, default=16, help="of the DDTREE server (default 16)")
    parser.add_argument("--trees", type=int, nargs="+", default=[4, 8], help="budgets that are compared")
    parser.add_argument("--block", type=int, default=8, help="of the drafter (default 8)")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per dataset, as recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--waves", type=int, default=2, help="of each size (default 2); thrice of one request")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="of each cell of the cost table (default 6)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/replay-check-DATE.jsonl")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Compared:
    """A system on a real server and in the simulator; `options` go into each request."""

    name: str
    server: str
    options: dict[str, Any]


def compared(trees: Sequence[int]) -> list[Compared]:
    """Plain decoding, the stock chain, fixed trees and the adaptive budget."""
    fixed = [
        Compared(f"tree {n}", "ddtree", {"custom_params": {"ddtree": {"budget": n, "adapt": False}}}) for n in trees
    ]
    return [Compared("plain", "plain", {}), Compared("chain", "dflash", {}), *fixed, Compared("adaptive", "ddtree", {})]


def waves_of(names: Sequence[str], size: int, count: int) -> list[list[str]]:
    """Some waves of that size, of different prompts as long as there are enough."""
    count = 3 * count if size == 1 else count
    return [[names[(first * size + place) % len(names)] for place in range(size)] for first in range(count)]


def decode_seconds(url: str, prompts: Sequence[list[int]], max_new_tokens: int, options: dict[str, Any]) -> float:
    """Seconds of all tokens of a wave but each one's first."""
    spent = []
    for tokens in (1, max_new_tokens):
        flush_cache(url)
        params = {"temperature": 0.0, "max_new_tokens": tokens, **options}
        began = time.perf_counter()
        post(url, "/generate", {"input_ids": list(prompts), "sampling_params": params})
        spent.append(time.perf_counter() - began)
    return spent[1] - spent[0]


def simulated(name: str, args: argparse.Namespace, costs: TableCosts, answers: Sequence[Answer]) -> Simulated:
    """The system of that name in the simulator; the adaptive one knows its costs, and has served these answers once."""
    if name == "plain":
        return Plain()
    if name == "chain":
        return Chain(args.block)
    if name != "adaptive":
        return FixedTree(int(name.removeprefix("tree ")))
    widths = BudgetPolicy.adaptive(args.budget + 1, any_width=True).node_counts
    model = known_model(costs, sorted({1, *args.batch_sizes}), (100.0,), widths)
    one = Adaptive(widths, model, on_device=False)
    for answer in answers:
        replay_wave([answer], one, costs)
    return one


def measure(
    servers: Sequence[RunningSystem], systems: list[Compared], prompts: Prompts, args: argparse.Namespace
) -> Iterator[tuple[str, int, float]]:
    """(system, size, seconds of its waves), systems in turns in each repeat and size, costs beside them."""
    urls = {one.system.name: one.url for one in servers}
    for repeat in range(args.repeats):
        for size in args.batch_sizes:
            waves = waves_of(list(prompts), size, args.waves)
            with step(f"repeat {repeat + 1}, costs of {size} at once"):
                calibrate_size(urls["ddtree"], size, args)
            for one in systems[repeat % len(systems) :] + systems[: repeat % len(systems)]:
                with step(f"repeat {repeat + 1}, {size} at once, {one.name}"):
                    spent = sum(
                        decode_seconds(
                            urls[one.server], [prompts[name] for name in wave], args.max_new_tokens, one.options
                        )
                        for wave in waves
                    )
                yield one.name, size, spent


def calibrate_size(url: str, size: int, args: argparse.Namespace) -> None:
    """Have the server measure rounds of so many requests, and of fewer, as a wave has them at its end."""
    widths = sorted({1, args.block - 1, *(budget + 1 for budget in args.trees), args.budget + 1})
    sizes = sorted({size, max(1, size - 1), max(1, size // 2)})
    calibrate(Asker(Server(url), WORDS), Plan(tuple(sizes), tuple(widths), args.rounds, WORDS), lambda _: None)


def result_lines(
    spent: dict[tuple[str, int], list[float]], table: CostTable, answers: Sequence[Answer], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measured and predicted, a line for each system and size."""
    costs, by_name = TableCosts(table), {answer.name: answer for answer in answers}
    lines: list[dict[str, Any]] = []
    seconds: dict[tuple[str, int], float] = {}
    for (name, size), times in spent.items():
        one = simulated(name, args, costs, answers)
        waves = waves_of(list(by_name), size, args.waves)
        found = [replay_wave([by_name[asked] for asked in wave], one, costs) for wave in waves]
        seconds[name, size] = sum(wave.seconds for wave in found)
        rounds = sum(wave.request_rounds for wave in found)
        lines.append(
            {
                "system": name,
                "batch_size": size,
                "measured_s": {"median": median(times), "min": min(times), "max": max(times), "n": len(times)},
                "predicted_s": seconds[name, size],
                "accept_length": sum(wave.tokens for wave in found) / rounds,
                "beyond": sum(wave.beyond for wave in found) / rounds,
            }
        )
    for line in lines:
        size = line["batch_size"]
        pairs = zip(spent["plain", size], spent[line["system"], size], strict=True)
        line["measured_ratio"] = median(of_plain / own for of_plain, own in pairs)
        line["predicted_ratio"] = seconds["plain", size] / line["predicted_s"]
        line["error"] = line["predicted_ratio"] / line["measured_ratio"] - 1
    return lines


def table_text(lines: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    rows = ["| requests | system | x plain, measured | x plain, predicted | error |", "|---:|---|---:|---:|---:|"]
    for line in sorted(lines, key=lambda one: one["batch_size"]):
        ratios = f"{line['measured_ratio']:.3f} | {line['predicted_ratio']:.3f} | {line['error']:+.1%}"
        rows.append(f"| {line['batch_size']} | {line['system']} | {ratios} |")
    return "\n".join(rows)


def run(args: argparse.Namespace) -> int:
    """Serve, calibrate, measure, predict, write."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    encoded = encode(sample_prompts(args.datasets, args.prompts, args.seed), pair.model)
    answers = load_answers(args.recording)
    known = {answer.name for answer in answers}
    asked = {f"{dataset}-{n}": ids for dataset, prompts in encoded.items() for n, ids in enumerate(prompts)}
    prompts = {name: ids for name, ids in asked.items() if name in known}
    answers = [one for name in prompts for one in answers if one.name == name]
    if not answers:
        raise ValueError(f"{args.recording} must hold answers to these prompts, got {sorted(known)[:3]}; record them")
    servers = [System("plain", None), System("dflash", "DFLASH"), System("ddtree", "DDTREE", args.budget, "adaptive")]
    spent: dict[tuple[str, int], list[float]] = {}
    with running(servers, Common.from_args(args, max(args.batch_sizes)), trace=False) as started:
        for name, size, seconds in measure(started, compared(args.trees), prompts, args):
            spent.setdefault((name, size), []).append(seconds)
        table = table_of(Server(started[-1].url))
    lines = result_lines(spent, table, answers, args)
    output = args.output or new_result("replay-check", ".jsonl")
    provenance = collect_provenance()
    replace_text(output, "".join(json.dumps({**line, "provenance": provenance}) + "\n" for line in lines))
    replace_text(output.with_suffix(".md"), table_text(lines) + "\n")
    replace_text(output.with_suffix(".costs.json"), json.dumps(table.to_json()) + "\n")
    say(table_text(lines))
    worst = max(lines, key=lambda line: abs(line["error"]))
    print(json.dumps({"output": output.name, "worst": {key: worst[key] for key in ("system", "batch_size", "error")}}))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    args = parse_args(argv)
    return exit_status("replay_check", lambda: run(args))
