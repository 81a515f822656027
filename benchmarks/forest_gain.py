"""What rectangular forwards cost a batch of trees, by replay: one width for all, a forest, two groups of own widths.

    python -m benchmarks forest_gain [--trace FILE] [--costs FILE] [--requests 2 4 8 32] [--output FILE.jsonl]

Four ways to verify the trees that were recorded, each with the expected tokens of the drafter's word:

- one width: every request has as many nodes; what a server does;
- ragged: the most probable nodes of all requests together, in a forward that takes what as many nodes take in a
  rectangle: a bound, for no backend has such a forward;
- padded: the same nodes in a rectangle as wide as the widest tree;
- two groups: requests that want few nodes in one forward, those that want many in another; each is charged as a
  round of its own, with its draft.

They know the costs and round by round how much of the drafter's word came true, so nothing but the way differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, cycle, product

import numpy as np

from benchmarks.first_drop import curves_of, replay_parser
from benchmarks.harness.flags import exit_status
from benchmarks.harness.provenance import collect_provenance
from ddtree_sglang.core.forest import Floats, Ints, share_nodes
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.simulator.costs import Costs
from ddtree_sglang.simulator.recording import Answer, Tree, load_answers
from ddtree_sglang.simulator.replay import begun, staggered
from ddtree_sglang.viewer.terminal import aligned
from ddtree_sglang.whole_file import replace_text

BUDGET = 16
ROUNDS = 600
REQUESTS = (2, 4, 8, 32)
WIDTHS = BudgetPolicy.adaptive(BUDGET + 1, any_width=True).node_counts


@dataclass(frozen=True)
class Plan:
    """How a round's trees are verified."""

    rate: float  # tokens per second, as expected
    shares: Ints  # [B] nodes of each
    seconds: float
    cells: int  # nodes that forwards have room for, padding included


@dataclass(frozen=True)
class Asked:
    """A round before it is planned."""

    probs: Floats  # [B, N] path probabilities, 0 at padding
    honesty: float  # what of the drafter's word came true so far
    cost: Callable[[int, float], float]  # seconds by requests and their mean nodes

    @cached_property
    def drafted(self) -> Floats:
        """`[B, N]` drafted tokens that the first 1 to N nodes of each tree promise."""
        sums: Floats = self.probs.cumsum(1) - 1.0
        return sums

    def tokens(self, shares: Ints) -> float:
        """Expected of all requests together, the target's own included."""
        return float(len(shares) + self.honesty * self.drafted[np.arange(len(shares)), shares - 1].sum())

    def plan(self, shares: Ints, seconds: float, cells: int) -> Plan:
        """These shares, with what is expected of them."""
        return Plan(self.tokens(shares) / seconds, shares, seconds, cells)


def one_width(asked: Asked) -> Plan:
    """The best width of all."""
    size = len(asked.probs)
    return _fastest(asked.plan(np.full(size, width), asked.cost(size, width), size * width) for width in WIDTHS)


def _fastest(plans: Iterable[Plan]) -> Plan:
    return max(plans, key=lambda one: one.rate)


def ragged(asked: Asked) -> Plan:
    """The best number of nodes, shared out; no cell is padding."""
    return _fastest(_forest(asked, width, is_padded=False) for width in WIDTHS)


def padded(asked: Asked) -> Plan:
    """The best number of nodes, shared out, at what the widest tree makes of it."""
    return _fastest(_forest(asked, width, is_padded=True) for width in WIDTHS)


def _forest(asked: Asked, mean_width: int, *, is_padded: bool) -> Plan:
    size = len(asked.probs)
    shares = share_nodes(asked.probs, size * mean_width)
    width = float(shares.max() if is_padded else shares.mean())
    return asked.plan(shares, asked.cost(size, width), round(size * width))


def two_groups(asked: Asked) -> Plan:
    """The best of one forward for all and of two, each of its own width; requests go by what their trees promise."""
    best = one_width(asked)
    order = np.argsort(asked.drafted[:, -1], kind="stable")
    for first, (narrow, wide) in product(range(1, len(order)), combinations(WIDTHS, 2)):
        shares = np.full(len(order), wide)
        shares[order[:first]] = narrow
        seconds = asked.cost(first, narrow) + asked.cost(len(order) - first, wide)
        best = _fastest((best, asked.plan(shares, seconds, int(shares.sum()))))
    return best


WAYS: Mapping[str, Callable[[Asked], Plan]] = {
    "one width": one_width,
    "ragged": ragged,
    "padded": padded,
    "two groups": two_groups,
}


def path_probs(trees: Sequence[Tree]) -> Floats:
    """`[B, N]`, 0 at padding; equals that a record has rounded the wrong way round are made descending."""
    probs = np.zeros((len(trees), WIDTHS[-1]))
    for row, tree in enumerate(trees):
        own = min(WIDTHS[-1], len(tree.path_probs))
        probs[row, :own] = np.minimum.accumulate(np.minimum(tree.path_probs[:own], 1.0))
    return probs


def rate(answers: Sequence[Answer], way: Callable[[Asked], Plan], costs: Costs, requests: int) -> dict[str, float]:
    """Tokens per second of a closed loop, and the share of its forwards' nodes that are padding."""
    coming = cycle(answers)
    running = [staggered(next(coming), index, requests) for index in range(requests)]
    tokens, seconds, nodes, cells, promised, kept = 0, 0.0, 0, 0, 10.0, 10.0
    for _ in range(ROUNDS):
        trees = [one.answer.tree_at(one.position)[0] for one in running]
        prefix = sum(one.position for one in running) / len(running)
        asked = Asked(path_probs(trees), kept / promised, _interpolated(costs, prefix))
        plan = way(asked)
        seconds, nodes, cells = seconds + plan.seconds, nodes + int(plan.shares.sum()), cells + plan.cells
        for row, (one, tree, share) in enumerate(zip(running, trees, plan.shares.tolist(), strict=True)):
            accepted = len(tree.accepted(share))
            promised += float(asked.probs[row, 1:share].sum())
            kept += accepted - 1
            emitted = min(accepted, one.answer.end - one.position)
            one.position += emitted
            tokens += emitted
        running = [one if not one.finished() else begun(coming) for one in running]
    return {"tokens_per_s": tokens / seconds, "padding": 1 - nodes / cells, "mean_nodes": nodes / ROUNDS / requests}


def _interpolated(costs: Costs, prefix: float) -> Callable[[int, float], float]:
    """Seconds of widths that are no whole numbers lie between those of their neighbours; what was asked is kept."""
    known: dict[tuple[int, int], float] = {}

    def whole(size: int, width: int) -> float:
        if (size, width) not in known:
            known[size, width] = costs.seconds(size, prefix, width)
        return known[size, width]

    def between(size: int, width: float) -> float:
        low = int(width)
        part = width - low
        return whole(size, low) if not part else (1 - part) * whole(size, low) + part * whole(size, low + 1)

    return between


def run(args: argparse.Namespace) -> int:
    """Replay, write, print."""
    answers = load_answers(args.trace)
    lines = [json.dumps({"kind": "provenance", **collect_provenance()})]
    rows = [["costs", "requests", "one width", *(f"{name} / one width" for name in list(WAYS)[1:]), "padding"]]
    for name, costs in curves_of(args).items():
        for requests in args.requests:
            found = {way: rate(answers, choose, costs, requests) for way, choose in WAYS.items()}
            lines.append(json.dumps({"kind": "forest_gain", "costs": name, "requests": requests, "ways": found}))
            rates = [one["tokens_per_s"] for one in found.values()]
            ratios = (f"{one / rates[0]:.3f}" for one in rates[1:])
            padding = f"{100 * found['padded']['padding']:.0f} %"
            rows.append([name, str(requests), f"{rates[0]:.1f} tokens/s", *ratios, padding])
    replace_text(args.output, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(aligned(rows)) + "\n")
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    args = replay_parser(__doc__, REQUESTS, "forest-gain.jsonl").parse_args(argv)
    return exit_status("forest_gain", lambda: run(args))
