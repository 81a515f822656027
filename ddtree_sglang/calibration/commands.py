"""`ddtree calibrate` and `ddtree reliability`: their flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ROUNDS = 8
WORDS = 24


def add_commands(commands: Any) -> None:
    """The two subcommands; each sets `run`, which takes the arguments and returns the exit status."""
    one = commands.add_parser(
        "calibrate",
        help="measure what rounds cost on a server that runs with policy adaptive, and draw it",
        description="Nobody else should ask the server meanwhile. What is measured is kept where the server keeps it.",
    )
    one.add_argument("url", nargs="?", metavar="URL", help="of the server, such as http://127.0.0.1:30000")
    one.add_argument("--show", type=Path, metavar="FILE", help="draw a table that a server or this command kept")
    one.add_argument("--requests", type=int, nargs="+", metavar="N", help="default: 1, 2, 4 ... that the server takes")
    one.add_argument("--nodes", type=int, nargs="+", metavar="N", help="root included; default: all of the server's")
    one.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each, at least (default {ROUNDS})")
    one.add_argument("--words", type=int, default=WORDS, help=f"of a prompt (default {WORDS}); more for long contexts")
    one.add_argument("--html", type=Path, metavar="OUT", help="write a page with charts; it needs no net")
    one.add_argument("--svg", type=Path, metavar="OUT", help="write the shortest contexts' charts as a picture")
    one.add_argument("--output", type=Path, metavar="OUT", help="write the table as JSON, for --show")
    one.add_argument("--api-key-env", metavar="VARIABLE", help="variable with the server's API key, if it has one")
    one.set_defaults(run=run_calibrate)
    two = commands.add_parser(
        "reliability",
        help="what a trace says of the drafter's probabilities: as said, corrected, and what was accepted",
    )
    two.add_argument("file", type=Path, metavar="FILE", help="that --speculative-ddtree-trace FILE wrote")
    two.add_argument("--run", type=int, metavar="N", dest="server_run", help="start of a server; default: its last")
    two.add_argument("--html", type=Path, metavar="OUT", help="write a page with the diagrams; it needs no net")
    two.add_argument("--svg", type=Path, metavar="OUT", help="write the diagrams as a picture")
    two.set_defaults(run=run_reliability)


def run_calibrate(args: argparse.Namespace) -> int:
    """Measure, or read, and draw."""
    from ddtree_sglang.calibration import actions

    return actions.run_calibrate(args)


def run_reliability(args: argparse.Namespace) -> int:
    """Judge a trace."""
    from ddtree_sglang.calibration import actions

    return actions.run_reliability(args)
