"""What `ddtree simulate` does; apart from its flags, because it takes seconds to import."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddtree_sglang.calibration.table import CostTableError
from ddtree_sglang.simulator.costs import Costs, TableCosts, guesses, load_table
from ddtree_sglang.simulator.predictions import Scene, chart, terminal, to_json
from ddtree_sglang.simulator.recording import RecordingError, block_size_of, load_answers
from ddtree_sglang.simulator.roofline import GPUS, Roofline, Shape, ShapeError
from ddtree_sglang.viewer.charts import svg
from ddtree_sglang.viewer.output import show
from ddtree_sglang.whole_file import replace_text


def run_simulate(args: argparse.Namespace) -> int:
    """Replay and print; 1 with a line on stderr if that cannot be."""
    try:
        _check(args)
        answers = load_answers(args.trace)
        block = _block(args)
        costs = _costs(args, block)
        scene = Scene(answers, costs, block, args.budgets, max(args.budgets), on_device=not args.on_cpu)
        found = scene.predict(args.requests)
    except (RecordingError, CostTableError, ShapeError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    guessed = _guessed(costs, args, block, scene.prefixes)
    if args.svg is not None:
        replace_text(args.svg, svg(chart(found, "Predicted, by a replay"), alone=True) + "\n")
    if args.output is not None:
        lines = [{**to_json(one), "guessed": guessed} for one in found]
        replace_text(args.output, "".join(json.dumps(line) + "\n" for line in lines))
    show(terminal(found, guessed))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("requests", 1), ("budgets", 1), ("block", 2), ("tp", 1)):
        given = getattr(args, name)
        if given is not None and min(given if isinstance(given, list) else [given]) < least:
            raise ValueError(f"--{name} must be {least} or more, got {given}; change it")


def _block(args: argparse.Namespace) -> int:
    """Nodes of the chain: as given, or of the drafter that the trace is of."""
    found: int | None = args.block or block_size_of(args.trace)
    if found is None:
        raise ValueError(
            f"--block must be given where the trace does not tell it, got {args.trace} without a walk of its rounds; "
            "give block_size of the drafter's config.json"
        )
    return found


def _costs(args: argparse.Namespace, block: int) -> Costs:
    if args.costs is not None:
        return TableCosts(load_table(args.costs, args.block))
    if args.target is None or args.draft is None:
        raise ValueError("--gpu must have --target CONFIG and --draft CONFIG beside it, got one or none")
    target, draft = (_config(path) for path in (args.target, args.draft))
    drafter = Shape.of(draft, target_features=_features(draft, args.draft))
    return Roofline(GPUS[args.gpu], Shape.of(target), drafter, block, args.tp)


def _guessed(costs: Costs, args: argparse.Namespace, block: int, prefixes: Sequence[int]) -> list[str]:
    """What of the predictions rests on no measured round. A data sheet's were never said to."""
    if not isinstance(costs, TableCosts):
        return []
    found = guesses(costs.table, args.requests, [block, *(budget + 1 for budget in args.budgets)], prefixes)
    if args.costs.suffix == ".jsonl" and args.block is None:
        found.append("its chain's rounds were left out, for results do not tell its block; --block N would name it")
    return found


def _config(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ShapeError(f"{path} must hold an object, got {found!r:.60}.")
    return found


def _features(draft: Mapping[str, Any], path: Path) -> int:
    """Layers of the target whose hidden states the drafter projects; 0 where its file names none."""
    block = draft.get("dflash_config", {})
    layers = block.get("target_layer_ids", []) if isinstance(block, dict) else None
    if not isinstance(layers, list):
        raise ShapeError(
            f"{path} must have dflash_config as an object whose target_layer_ids is a list, got {block!r:.60}; give "
            "the config.json of a DFlash drafter."
        )
    return len(layers)
