"""Hold the replay simulator to a finished run of `decode`: its rates from recorded trees and its round costs.

    python -m benchmarks replay_rates RECORDING DECODE.jsonl

A round's cost is the mean of the run's prompt sets, the acceptance of each set is replayed from RECORDING
(`record_replay` with the same seed), so neither is fitted to the set that is predicted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import exit_status
from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.simulator.costs import table_of_decode
from ddtree_sglang.simulator.recording import Answer, load_answers
from ddtree_sglang.simulator.replay import System, replay_wave
from ddtree_sglang.simulator.systems import Chain, FixedTree
from workers.progress import say


@dataclass(frozen=True)
class OneSecond:
    """Costs by which seconds are rounds."""

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """Always 1."""
        return 1.0


def simulated(name: str, block: int) -> System | None:
    """The system of a result line, None of one that is not replayed here."""
    if name == "dflash":
        return Chain(block)
    budget = name.removeprefix("ddtree-")
    return FixedTree(int(budget)) if budget.isdigit() and int(budget) else None


def per_round(answers: Sequence[Answer], system: System, tokens: int) -> tuple[float, float]:
    """Tokens of a request and round, without an answer's first token and with it, as `decode` counts."""
    made = rounds = 0
    for answer in answers:
        found = replay_wave([replace(answer, end=min(answer.end, answer.start + tokens - 1))], system, OneSecond())
        made, rounds = made + found.tokens, rounds + found.request_rounds
    return made / rounds, (made + len(answers)) / rounds


def compared(
    lines: Sequence[dict[str, Any]], answers: Sequence[Answer], table: CostTable, block: int, tokens: int
) -> Iterator[list[str]]:
    """A row for each line of a drafting system whose prompts were recorded."""
    for line in lines:
        system = simulated(line["system"], block)
        count = line["num_prompts"]
        names = [f"{line['dataset']}-{index}" for index in range(count)]
        known = [answer for name in names for answer in answers if answer.name == name]
        if system is None or not known:
            continue
        rate, accept_length = per_round(known, system, tokens)
        curve, size = table.curve(0, line["batch_size"]), line["batch_size"]
        nodes = system.round([]).num_nodes
        ratio = rate * curve[1] / curve[nodes]
        error = f"{ratio / line['ratio_to_plain'] - 1:+.1%}"
        measured = f"{line['accept_length']['median']:.2f}", f"{line['ratio_to_plain']:.3f}"
        about = [str(size), line["dataset"], line["system"], f"{len(known)} of {count}"]
        yield [*about, measured[0], f"{accept_length:.2f}", measured[1], f"{ratio:.3f}", error]


HEAD = ("requests", "prompts", "system", "recorded", "accept length", "replayed", "x plain", "predicted", "error")


def run(args: argparse.Namespace) -> int:
    """Compare, print."""
    lines = [json.loads(line) for line in args.decode.read_text(encoding="utf-8").splitlines()]
    tokens = lines[0]["num_tokens"] // lines[0]["num_prompts"]
    table = table_of_decode(lines, args.block, asked=True)
    rows = [list(HEAD), ["---"] * len(HEAD), *compared(lines, load_answers(args.recording), table, args.block, tokens)]
    say("\n".join("| " + " | ".join(row) + " |" for row in rows))
    print(json.dumps({"compared": len(rows) - 2, "worst": max((row[-1] for row in rows[2:]), key=_size, default=None)}))
    return 0 if len(rows) > 2 else 1


def _size(error: str) -> float:
    return abs(float(error.rstrip("%")))


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("decode", type=Path)
    parser.add_argument("--block", type=int, default=8, help="of the drafter (default 8)")
    args = parser.parse_args(argv)
    return exit_status("replay_rates", lambda: run(args))
