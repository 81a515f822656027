"""What `ddtree simulate` does; apart from its flags, because it takes seconds to import."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ddtree_sglang.calibration.table import CostTable, CostTableError
from ddtree_sglang.simulator.costs import Costs, TableCosts
from ddtree_sglang.simulator.predictions import Scene, chart, terminal, to_json
from ddtree_sglang.simulator.recording import RecordingError, load_answers
from ddtree_sglang.simulator.roofline import GPUS, Roofline, Shape, ShapeError
from ddtree_sglang.viewer.charts import svg
from ddtree_sglang.viewer.output import show
from ddtree_sglang.whole_file import replace_text


def run_simulate(args: argparse.Namespace) -> int:
    """Replay and print; 1 with a line on stderr if that cannot be."""
    try:
        _check(args)
        answers = load_answers(args.trace)
        most = max(args.budgets)
        scene = Scene(answers, _costs(args), args.block, args.budgets, most, on_device=not args.on_cpu)
        found = scene.predict(args.requests)
    except (RecordingError, CostTableError, ShapeError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if args.svg is not None:
        replace_text(args.svg, svg(chart(found, "Predicted, by a replay"), alone=True) + "\n")
    if args.output is not None:
        replace_text(args.output, "".join(json.dumps(to_json(one)) + "\n" for one in found))
    show(terminal(found))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("requests", 1), ("budgets", 1), ("block", 2), ("tp", 1)):
        given = getattr(args, name)
        if min(given if isinstance(given, list) else [given]) < least:
            raise ValueError(f"--{name} must be {least} or more, got {given}; change it")


def _costs(args: argparse.Namespace) -> Costs:
    if args.costs is not None:
        return TableCosts(CostTable.load(args.costs))
    if args.target is None or args.draft is None:
        raise ValueError("--gpu must have --target CONFIG and --draft CONFIG beside it, got one or none")
    target, draft = (_config(path) for path in (args.target, args.draft))
    features = len(draft.get("dflash_config", {}).get("target_layer_ids", ()))
    return Roofline(GPUS[args.gpu], Shape.of(target), Shape.of(draft, target_features=features), args.block, args.tp)


def _config(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ShapeError(f"{path} must hold an object, got {found!r:.60}.")
    return found
