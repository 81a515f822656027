"""`ddtree simulate`: its flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddtree_sglang.simulator.defaults import BUDGETS, CONCURRENCIES
from ddtree_sglang.simulator.roofline import GPUS


def add_commands(commands: Any) -> None:
    """The subcommand; it sets `run`, which takes the arguments and returns the exit status."""
    one = commands.add_parser(
        "simulate",
        help="predict tokens per second from a trace and what rounds cost, for any number of requests",
        description="Decoding alone: prompts take no time, and a request that ends is replaced at once.",
    )
    one.add_argument(
        "trace", type=Path, metavar="TRACE", help="recorded trees: --speculative-ddtree-trace FILE, or .gz"
    )
    costs = one.add_mutually_exclusive_group(required=True)
    costs.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="measured: a file of DDTREE_COSTS or of calibrate, or results of `benchmarks decode` (.jsonl)",
    )
    costs.add_argument("--gpu", choices=GPUS, help="of a data sheet, with --target and --draft")
    one.add_argument("--target", type=Path, metavar="CONFIG", help="the target's config.json")
    one.add_argument("--draft", type=Path, metavar="CONFIG", help="the drafter's config.json")
    one.add_argument("--tp", type=int, default=1, help="GPUs that share the models (default 1)")
    one.add_argument("--block", type=int, help="nodes of the chain (default: of the trace's drafter)")
    one.add_argument("--requests", type=int, nargs="+", default=list(CONCURRENCIES), metavar="N", help="at once")
    one.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=list(BUDGETS),
        metavar="N",
        help="of fixed trees, the largest also the adaptive one's most",
    )
    one.add_argument("--on-cpu", action="store_true", help="the adaptive budget sees trees before it chooses")
    one.add_argument("--svg", type=Path, metavar="OUT", help="write a picture")
    one.add_argument("--output", type=Path, metavar="OUT", help="write JSON lines")
    one.set_defaults(run=run_simulate)


def run_simulate(args: argparse.Namespace) -> int:
    """Replay and print."""
    from ddtree_sglang.simulator import actions

    return actions.run_simulate(args)
