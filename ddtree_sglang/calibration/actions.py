"""What `ddtree calibrate` and `ddtree reliability` do; apart from their flags, because it takes seconds to import."""

from __future__ import annotations

import argparse
import json
import os
import sys

from ddtree_sglang.calibration import reliability_report
from ddtree_sglang.calibration.asking import Asker, Plan, calibrate, offer_of, table_of
from ddtree_sglang.calibration.drawing import page, picture, terminal
from ddtree_sglang.calibration.reliability_report import reliability_of
from ddtree_sglang.calibration.table import CostTable, CostTableError
from ddtree_sglang.cost_batches import MOST_REQUESTS, sizes_up_to
from ddtree_sglang.viewer.charts import stacked, svg
from ddtree_sglang.viewer.choice import choose_run
from ddtree_sglang.viewer.output import show
from ddtree_sglang.viewer.terminal import Ink
from ddtree_sglang.viewer.top import NoServer, Server, api_key
from ddtree_sglang.viewer.trace_file import Trace, TraceError
from ddtree_sglang.whole_file import replace_text


def run_calibrate(args: argparse.Namespace) -> int:
    """Measure, or read, and draw; 1 with a line on stderr if that cannot be."""
    try:
        if (args.url is None) == (args.show is None):
            raise CostTableError("give either the URL of a server or --show FILE, got both or none.")
        table = CostTable.load(args.show) if args.show is not None else _measured(args)
        _write(args, table)
        show(terminal(table, _ink()))
    except KeyboardInterrupt:
        return 130
    except (CostTableError, NoServer, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def run_reliability(args: argparse.Namespace) -> int:
    """Judge a trace; 1 with a line on stderr if that cannot be."""
    try:
        trace = Trace(args.file)
        found = reliability_of(trace, choose_run(trace, args.server_run))
        if args.html is not None:
            replace_text(args.html, reliability_report.page(found, f"The drafter's word in {args.file.name}"))
        if args.svg is not None:
            replace_text(args.svg, stacked([svg(chart) for chart in reliability_report.charts(found)], columns=2))
        show(reliability_report.terminal(found, _ink()))
    except (TraceError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _ink() -> Ink:
    return Ink(sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def _measured(args: argparse.Namespace) -> CostTable:
    key = api_key(args.api_key_env)
    server = Server(args.url, key)
    offer = offer_of(server)
    unknown = sorted(set(args.nodes or ()) - set(offer.nodes))
    if unknown:
        raise CostTableError(f"--nodes must be of the server's {list(offer.nodes)}, got {unknown}; change them.")
    sizes = args.requests or sizes_up_to(min(offer.max_running, MOST_REQUESTS))
    if min(sizes) < 1 or max(sizes) > offer.max_running:
        raise CostTableError(
            f"--requests must be from 1 to the server's {offer.max_running}, got {sizes}; change them."
        )
    if args.rounds < 2 or args.words < 1:
        raise CostTableError(f"--rounds must be 2 or more, --words 1, got {args.rounds} and {args.words}.")
    plan = Plan(tuple(sizes), tuple(args.nodes or offer.nodes), args.rounds, args.words)
    calibrate(Asker(server, plan.words, key), plan, _say)
    return table_of(server)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _write(args: argparse.Namespace, table: CostTable) -> None:
    if args.output is not None:
        replace_text(args.output, json.dumps(table.to_json()) + "\n")
    if args.html is not None:
        replace_text(args.html, page(table, "What rounds cost"))
    if args.svg is not None:
        replace_text(args.svg, picture(table, table.contexts()[0]))
