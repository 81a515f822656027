"""`ddtree trace` and `ddtree top`: their flags, and what they print."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ddtree_sglang.viewer import top
from ddtree_sglang.viewer.choice import choose_rounds, choose_run, newest
from ddtree_sglang.viewer.follow import follow
from ddtree_sglang.viewer.layout import plain_line
from ddtree_sglang.viewer.output import show
from ddtree_sglang.viewer.page import page
from ddtree_sglang.viewer.page_data import page_data
from ddtree_sglang.viewer.terminal import Ink, listing, overview, picture
from ddtree_sglang.viewer.trace_file import Trace, TraceError
from ddtree_sglang.viewer.vocabulary import Vocabulary
from ddtree_sglang.whole_file import replace_text

MAX_ROUNDS = 500
MOST_PICTURES = 12
"""Rounds that are drawn in a terminal; more are a table with a line each."""


def add_commands(commands: Any) -> None:
    """The two subcommands; each sets `run`, which takes the arguments and returns the exit status."""
    trace = commands.add_parser("trace", help="show the rounds that --speculative-ddtree-trace FILE recorded")
    trace.add_argument("file", type=Path, metavar="FILE")
    trace.add_argument("--html", type=Path, metavar="OUT", help="write a page to step through instead; it needs no net")
    trace.add_argument("--rounds", metavar="FIRST:LAST", help="these rounds alone; a single number is one round")
    trace.add_argument("--request", metavar="ID", help="rounds of the requests whose id begins so")
    trace.add_argument(
        "--run", type=int, metavar="N", dest="server_run", help="start of a server, from 1; default: its last"
    )
    trace.add_argument("--tokenizer", metavar="FOLDER_OR_NAME", help="default: the model that the trace names")
    trace.add_argument(
        "--max-rounds",
        type=int,
        default=MAX_ROUNDS,
        help=f"most rounds whose trees a page holds, the newest (default {MAX_ROUNDS})",
    )
    trace.add_argument("--follow", action="store_true", help="print a line for each new round, until Ctrl-C")
    trace.set_defaults(run=run_trace)
    live = commands.add_parser("top", help="watch a server: accept length, width, tokens per second, decisions")
    live.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:30000")
    live.add_argument("--interval", type=float, default=2.0, help="seconds between two looks (default 2)")
    live.add_argument("--once", action="store_true", help="look once and end")
    live.add_argument("--api-key-env", metavar="VARIABLE", help="variable with the server's API key, if it has one")
    live.set_defaults(run=run_top)


def run_trace(args: argparse.Namespace) -> int:
    """Print the trace, or write its page; 1 with a line on stderr if it cannot be shown."""
    try:
        if args.follow:
            follow(args.file, sys.stdout, request=args.request)
        show(shown_trace(args))
    except KeyboardInterrupt:
        return 0
    except (TraceError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def shown_trace(args: argparse.Namespace) -> str:
    """What the command prints, with a newline at its end.

    Raises:
        TraceError: the file, or what was asked of it, cannot be shown.
        OSError: the page cannot be written.
    """
    if args.max_rounds < 1:
        raise TraceError(f"--max-rounds must be 1 or more, got {args.max_rounds}; change it.")
    trace = Trace(args.file)
    run = choose_run(trace, args.server_run)
    rounds = choose_rounds(run, args.rounds, args.request)
    vocabulary = Vocabulary.of(args.tokenizer, run.server)
    if args.html is not None:
        data = page_data(trace, run, newest(rounds, args.max_rounds), vocabulary)
        replace_text(args.html, page(data, f"Rounds of {args.file.name}"))
        return f"{args.html}\n"
    ink = Ink(sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    parts = [] if args.rounds else [overview(trace, run, rounds, ink)]
    if args.rounds and len(rounds) > MOST_PICTURES:
        parts.append(listing(rounds))
    else:
        drawn = rounds if args.rounds else rounds[-1:]
        parts += [picture(one.number, trace.load(one), vocabulary, ink, one.took_ms) for one in drawn]
    return "\n\n".join(part for part in (*parts, plain_line(vocabulary.note)) if part) + "\n"


def run_top(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C; 1 with a line on stderr if there is nothing to watch."""
    try:
        server = top.Server(args.url, top.api_key(args.api_key_env))
        return top.watch(server, sys.stdout, args.interval, once=args.once)
    except KeyboardInterrupt:
        return 0
    except top.NoServer as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
