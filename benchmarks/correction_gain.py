"""What correcting the drafter's probabilities does to the choice of a round's nodes, by replay.

    python -m benchmarks correction_gain [--trace FILE] [--costs FILE] [--orders N] [--output FILE.jsonl]

Three controllers decide over the same recorded answers, in the server's own `AdaptiveBudget`. They know the costs, so
that nothing but what they believe differs:

- corrected: node by node, by what was accepted (`core.honest_probs`), and by a factor for each request; the default;
- factor alone: the drafter's word, and each request's factor;
- as said: the drafter's word.

`--orders` shuffles the answers so many times; intervals are of 95 % over these orders.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.first_drop import add_orders, loads, replay_parser, replayed, spread
from benchmarks.harness.flags import exit_status
from benchmarks.harness.provenance import collect_provenance
from ddtree_sglang.core.honest_probs import HonestProbs, RoundTrees
from ddtree_sglang.core.round_loops import Bools, Ints
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.simulator.replay import Prediction
from ddtree_sglang.viewer.terminal import aligned
from ddtree_sglang.whole_file import replace_text

REQUESTS = (1, 2, 4, 8)


class DraftersWord(HonestProbs):
    """Never learns, so that it begins and ends with the drafter's own word."""

    def learn(self, trees: RoundTrees, accept_index: Ints, counted: Bools) -> None:
        """Nothing."""


class FactorAlone(AdaptiveBudget):
    """The server's controller without the correction by node."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)  # type: ignore[arg-type]
        self.probs = DraftersWord()


class AsSaid(FactorAlone):
    """Without each request's factor as well."""

    def _learn(self) -> None:
        super()._learn()
        self._requests.forget_what_was_kept()


KINDS = {"corrected": AdaptiveBudget, "factor alone": FactorAlone, "as said": AsSaid}
HEAD = ("costs", "requests", "belief", "tokens/s", "of corrected", "95 %", "orders")
CHOICE = ("nodes", "drafted", "accept length")


def run(args: argparse.Namespace) -> int:
    """Replay, write, print."""
    lines = [json.dumps({"kind": "provenance", **collect_provenance()})]
    rows = [[*HEAD, *CHOICE]]
    for name, costs, requests, orders in loads(args):
        about = {"kind": "correction_gain", "costs": name, "requests": requests}
        found = {belief: [replayed(kind, one, costs, requests) for one in orders] for belief, kind in KINDS.items()}
        for belief, replays in found.items():
            for order, one in enumerate(replays):
                lines.append(json.dumps({**about, "order": order, "belief": belief, **facts_of(one)}))
            rows.append([name, str(requests), belief, *cells(replays, found["corrected"])])
    replace_text(args.output, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(aligned(rows)) + "\n")
    return 0


def facts_of(one: Prediction) -> dict[str, Any]:
    """What a line says of a replay."""
    speed = {"tokens_per_s": one.tokens_per_s, "accept_length": one.accept_length}
    return {**speed, "widths": dict(sorted(one.widths.items()))}


def cells(replays: Sequence[Prediction], corrected: Sequence[Prediction]) -> list[str]:
    """Of one belief: means over orders, and its speed over that of `corrected`, order by order."""
    ratios = [one.tokens_per_s / right.tokens_per_s for one, right in zip(replays, corrected, strict=True)]
    of_each = ((one.tokens_per_s, one.mean_nodes, drafted_share(one), one.accept_length) for one in replays)
    rate, nodes, drafted, accepted = map(statistics.fmean, zip(*of_each, strict=True))
    return [f"{rate:.1f}", *spread(ratios), f"{nodes:.1f}", f"{drafted:.0%}", f"{accepted:.2f}"]


def drafted_share(found: Prediction) -> float:
    """Of the rounds, those that were drafted for."""
    return 1 - found.widths[1] / found.widths.total()


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    parser = replay_parser(__doc__, REQUESTS, "correction-gain.jsonl")
    add_orders(parser)
    args = parser.parse_args(argv)
    return exit_status("correction_gain", lambda: run(args))
