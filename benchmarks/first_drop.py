"""The best width of all against a stop at the first drop of tokens per second, by replay.

    python -m benchmarks first_drop [--trace FILE] [--costs FILE] [--orders N] [--output FILE.jsonl]

CaDDTree (arXiv 2606.01813) widens a tree until its expected rate falls for the first time, which is the best width
where a round's cost is convex in its nodes. Both rules decide here in the server's own `AdaptiveBudget`, with the same
probabilities, over the same recorded answers. They know the costs, so that nothing but the rule differs.

What a rule chose changes what is learned and when answers end, so that two runs of it differ by luck, too. `--orders`
shuffles the answers so many times; the ratio's interval is of 95 % over these orders.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.harness.flags import exit_status
from benchmarks.harness.intervals import Resampling, columns, ratio
from benchmarks.harness.provenance import REPO, collect_provenance
from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.core.round_loops import Floats
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.simulator.costs import Costs, TableCosts, known_model
from ddtree_sglang.simulator.recording import Answer, load_answers
from ddtree_sglang.simulator.replay import Prediction, replay
from ddtree_sglang.simulator.systems import Adaptive
from ddtree_sglang.viewer.terminal import aligned
from ddtree_sglang.whole_file import replace_text

BUDGET = 16
ROUNDS = 1500
REQUESTS = (1, 4, 8, 32)


def first_drop(tokens: Floats, seconds: Floats) -> int:
    """Index of the last width before tokens per second fall for the first time."""
    rates = tokens / seconds
    falls = np.flatnonzero(np.diff(rates) < 0)
    return int(falls[0]) if len(falls) else len(rates) - 1


class FirstDrop(AdaptiveBudget):
    """The server's controller with the other rule for trees; what it finds is compared with plain decoding as ever."""

    choose = staticmethod(first_drop)


class Curve:
    """Seconds of a round by requests and nodes, in which context does not count."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self._seconds = seconds

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """See `Costs`."""
        return self._seconds(batch_size, num_nodes)


def _convex(size: int, nodes: int) -> float:
    return 0.020 + (0.005 if nodes > 1 else 0.0) + 0.0006 * size * nodes


def _captured(size: int, nodes: int) -> float:
    """A forward is padded to a captured number of rows, a power of four."""
    rows = 4 ** int(np.ceil(np.log2(size * nodes) / 2))
    return 0.020 + (0.005 if nodes > 1 else 0.0) + 0.0006 * rows


def _kernel_of_many(size: int, nodes: int) -> float:
    """From nine nodes on another kernel is chosen, and from three to seven none is good."""
    return _convex(size, nodes) + (0.030 if 3 <= nodes < 9 else 0.0)


CURVES: Mapping[str, Costs] = {
    "convex": Curve(_convex),
    "padded rows": Curve(_captured),
    "a cliff": Curve(_kernel_of_many),
}


def replayed(kind: type[AdaptiveBudget], answers: Sequence[Answer], costs: Costs, requests: int) -> Prediction:
    """What a controller that knows the costs makes of `ROUNDS` rounds."""
    widths = BudgetPolicy.adaptive(BUDGET + 1, any_width=True).node_counts
    prefixes = [one.start for one in answers] + [one.end for one in answers]
    known = known_model(costs, [requests], prefixes, widths)
    system = Adaptive(widths, known, on_device=False, kind=kind)
    return replay(answers, system, costs, requests, ROUNDS)


def compared(answers: Sequence[Answer], costs: Costs, requests: int) -> dict[str, float]:
    """Tokens per second of both rules."""
    kinds = (("best", AdaptiveBudget), ("first drop", FirstDrop))
    return {name: replayed(kind, answers, costs, requests).tokens_per_s for name, kind in kinds}


def in_order(answers: Sequence[Answer], order: int) -> list[Answer]:
    """As recorded for order 0, else shuffled by that seed."""
    found = list(answers)
    if order:
        random.Random(order).shuffle(found)
    return found


def spread(ratios: Sequence[float]) -> list[str]:
    """Cells: the mean, its interval of 95 % over orders, the least and the largest; one ratio has no interval."""
    found = Resampling(len(ratios)).estimate(columns(np.array(ratios), np.ones(len(ratios))), ratio)
    interval = f"{found.low:.3f} to {found.high:.3f}" if len(ratios) > 1 else "-"
    return [f"{found.value:.3f}", interval, f"{min(ratios):.3f} to {max(ratios):.3f}"]


def loads(args: argparse.Namespace) -> Iterator[tuple[str, Costs, int, list[list[Answer]]]]:
    """Of each curve and load its name, its costs, requests at once, and the answers in each order."""
    if args.orders < 1:
        raise ValueError(f"--orders must be 1 or more, got {args.orders}; change it.")
    answers = load_answers(args.trace)
    orders = [in_order(answers, order) for order in range(args.orders)]
    for (name, costs), requests in product(curves_of(args).items(), args.requests):
        yield name, costs, requests, orders


def run(args: argparse.Namespace) -> int:
    """Replay, write, print."""
    lines = [json.dumps({"kind": "provenance", **collect_provenance()})]
    rows = [["costs", "requests", "best, tokens/s", "first drop", "ratio", "95 %", "orders"]]
    for name, costs, requests, orders in loads(args):
        rates: dict[str, list[float]] = {}
        for order, answers in enumerate(orders):
            found = compared(answers, costs, requests)
            about = {"kind": "first_drop", "costs": name, "requests": requests, "order": order}
            lines.append(json.dumps({**about, **found}))
            for rule, rate in found.items():
                rates.setdefault(rule, []).append(rate)
        ratios = [best / stop for best, stop in zip(rates["best"], rates["first drop"], strict=True)]
        rows.append([name, str(requests), *(f"{statistics.fmean(one):.1f}" for one in rates.values()), *spread(ratios)])
    replace_text(args.output, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(aligned(rows)) + "\n")
    return 0


def replay_parser(doc: str | None, requests: Sequence[int], output: str) -> argparse.ArgumentParser:
    """Flags of a benchmark that replays a trace by these curves: its docstring, loads, and result file by default."""
    results = REPO / "benchmarks/results"
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--trace", type=Path, default=results / "replay-20261127.jsonl.gz")
    parser.add_argument("--costs", type=Path, help="also a measured table: of `ddtree calibrate` or DDTREE_COSTS")
    parser.add_argument("--requests", type=int, nargs="+", default=list(requests))
    parser.add_argument("--output", type=Path, default=results / output)
    return parser


def add_orders(parser: argparse.ArgumentParser) -> None:
    """What `loads` reads besides."""
    parser.add_argument("--orders", type=int, default=1, help="of the answers, one of them as recorded (default 1)")


def curves_of(args: argparse.Namespace) -> dict[str, Costs]:
    """The made-up curves, and the measured one that `replay_parser` names."""
    curves = dict(CURVES)
    if args.costs is not None:
        curves[args.costs.name] = TableCosts(CostTable.load(args.costs))
    return curves


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    parser = replay_parser(__doc__, REQUESTS, "first-drop.jsonl")
    add_orders(parser)
    args = parser.parse_args(argv)
    return exit_status("first_drop", lambda: run(args))
