"""What each part of the drafter's recipe is worth: short runs that differ in one thing, scored on the same text.

    python benchmarks/bench_drafter_recipe.py --target M --data FILE.npz --features DIR --output FOLDER [--steps 300]

Every run starts anew, sees the same conversations in the same order and is cooled down. A short run says which way a
choice points, not how far it goes after hours. Prints a table; one JSON line per run goes to the results folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from provenance import collect_provenance


class Variant(NamedTuple):
    """One run: its name, and the flags that differ from the base."""

    name: str
    flags: tuple[str, ...]


BASE = ("--soft-share", "0.5", "--depth-decay", "0.75", "--rows", "4", "--anchors", "32", "--learning-rate", "1e-3")
VARIANTS = (
    Variant("base", ()),
    Variant("started from noise", ("--random-start",)),
    Variant("hard labels only", ("--soft-share", "0")),
    Variant("soft labels only", ("--soft-share", "1")),
    Variant("no position weights", ("--depth-decay", "1")),
    Variant("weights by chance to be reached", ("--confidence-floor", "0.1")),
    Variant("anchors where the target is unsure", ("--anchor-uncertainty", "1")),
    Variant("noise 0.3 on features", ("--feature-noise", "0.3")),
    Variant("block of 16", ("--block-size", "16")),
)
COLUMNS = ("chain", "tree8", "tree16", "tree32", "tree64")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    chosen = [variant for variant in VARIANTS if not args.only or variant.name in args.only]
    if not chosen:
        print(f"error: --only must name runs of {[variant.name for variant in VARIANTS]}.", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for variant in chosen:
        row = run(variant, args)
        rows.append(row)
        with (args.results / "drafter_recipe.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(table(rows), flush=True)
    return 0


def run(variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one variant in a process of its own; the features are shared."""
    work = args.output / variant.name.replace(" ", "-")
    work.mkdir(parents=True, exist_ok=True)
    link = work / "features"
    if not link.exists():
        link.symlink_to(args.features.resolve())
    last = ("--steps", str(args.steps), "--evaluate-every", str(args.steps), "--checkpoint-every", str(args.steps))
    shared = ("--target", str(args.target), "--data", str(args.data), "--work", str(work), "--cooldown", "0.5")
    limit = ("--held-out-limit", str(args.held_out_limit), "--threads", str(args.threads), "--seed", str(args.seed))
    module = [sys.executable, "-m", "ddtree_sglang.demo.train_drafter", "train"]
    started = time.monotonic()
    print(f"... {variant.name}: {args.steps} steps", flush=True)
    with (work / "train.log").open("w") as log:
        subprocess.run([*module, *shared, *BASE, *last, *limit, *variant.flags], check=True, stdout=log, stderr=log)
    records = [json.loads(line) for line in (work / "checkpoints" / "curve.jsonl").read_text().splitlines()]
    scores = next(record["held_out"] for record in reversed(records) if "held_out" in record)
    seconds = next(record["seconds"] for record in reversed(records) if "seconds" in record)
    return {
        "run": variant.name,
        "flags": [*BASE, *variant.flags],
        "steps": args.steps,
        "seed": args.seed,
        "training_seconds": seconds,
        "wall_seconds": round(time.monotonic() - started),
        **scores,
        "provenance": collect_provenance(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Accept lengths, and by how much each differs from the first row."""
    lines = ["| run | training s | " + " | ".join(COLUMNS) + " |", "|---|--:|" + "--:|" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[column]:.3f} ({row[column] - rows[0][column]:+.3f})" for column in COLUMNS]
        lines.append(f"| {row['run']} | {row['training_seconds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True, help="features folder of a train_drafter work folder")
    parser.add_argument("--output", type=Path, required=True, help="a work folder per run goes in here")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--held-out-limit", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
