"""What each part of the drafter's recipe is worth: short runs that differ in one thing, scored on one text.

    python -m benchmarks drafter_recipe --target M --data FILE.npz --features DIR --output FOLDER [--steps 300]

All runs start anew, see equal conversations in equal order and are cooled down. A short run shows the direction of a
choice's effect, not its size after hours. A table is printed; one JSON line per run goes to the results folder.

A run that was stopped goes on when its command is given again, and its line says so. A folder in `--output` that holds
another run is refused. Differences are taken from the run named "base": of this command, else the latest one of
equal length, seed and held-out conversations in the results.
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

from benchmarks.harness.provenance import collect_provenance


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
DEFAULT_LIMIT = 24  # held-out conversations
COLUMNS = ("chain", "tree8", "tree16", "tree32", "tree64")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    chosen = [variant for variant in VARIANTS if not args.only or variant.name in args.only]
    if not chosen:
        print(f"error: --only must name runs of {[variant.name for variant in VARIANTS]}.", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    results, rows = args.results / "drafter_recipe.jsonl", list[dict[str, Any]]()
    try:
        for variant in chosen:
            claim_folder(variant, args)  # all of them before the first run, which takes minutes
        for variant in chosen:
            rows.append(run(variant, args))
            with results.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(table(rows, find_base(rows, results)), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def work_folder(variant: Variant, args: argparse.Namespace) -> Path:
    """Where a run has its checkpoints."""
    folder: Path = args.output / variant.name.replace(" ", "-")
    return folder


def training_flags(variant: Variant, args: argparse.Namespace) -> list[str]:
    """All that the run's scores depend on."""
    last = ("--steps", str(args.steps), "--evaluate-every", str(args.steps), "--checkpoint-every", str(args.steps))
    shared = ("--target", str(args.target), "--data", str(args.data), "--cooldown", "0.5")
    limit = ("--held-out-limit", str(args.held_out_limit), "--seed", str(args.seed))
    return [*shared, *BASE, *last, *limit, *variant.flags]


def claim_folder(variant: Variant, args: argparse.Namespace) -> None:
    """Note this run's flags in its folder; ValueError when another run is in there, whose scores it would report."""
    work, flags = work_folder(variant, args), training_flags(variant, args)
    note = work / "flags.json"
    if (work / "checkpoints").exists():
        held = json.loads(note.read_text()) if note.exists() else "unknown flags"
        if held != flags:
            raise ValueError(
                f"a run goes on only with its own plan; {work} holds one of {held}, got {flags}: remove that folder "
                "or name another --output."
            )
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(flags))


def run(variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one variant in a process of its own; the features are shared."""
    work = work_folder(variant, args)
    resumed = (work / "checkpoints").exists()
    link = work / "features"
    if not link.exists():
        link.symlink_to(args.features.resolve())
    module = [sys.executable, "-m", "ddtree_sglang.training", "train"]
    started = time.monotonic()
    print(f"... {variant.name}: {args.steps} steps", flush=True)
    with (work / "train.log").open("w") as log:
        where = ("--work", str(work), "--threads", str(args.threads))
        subprocess.run([*module, *training_flags(variant, args), *where], check=True, stdout=log, stderr=log)
    records = [json.loads(line) for line in (work / "checkpoints" / "curve.jsonl").read_text().splitlines()]
    scores = next(record["held_out"] for record in reversed(records) if "held_out" in record)
    seconds = next(record["seconds"] for record in reversed(records) if "seconds" in record)
    return {
        "run": variant.name,
        "flags": [*BASE, *variant.flags],
        "steps": args.steps,
        "seed": args.seed,
        "held_out_limit": args.held_out_limit,
        "resumed": resumed,
        "training_seconds": seconds,
        "wall_seconds": round(time.monotonic() - started),
        **scores,
        "provenance": collect_provenance(),
    }


def find_base(rows: list[dict[str, Any]], results: Path) -> dict[str, Any] | None:
    """The run that differences are taken from; None when there is none to compare with."""
    lines = results.read_text().splitlines() if results.exists() else []
    known = [*map(json.loads, lines), *rows]
    # Older lines do not say how many conversations they were scored on: it was the default.
    keys = {"steps": None, "seed": None, "held_out_limit": DEFAULT_LIMIT}
    wanted = {key: rows[-1].get(key, default) for key, default in keys.items()}
    fitting = [row for row in known if row["run"] == "base" and {k: row.get(k, d) for k, d in keys.items()} == wanted]
    return fitting[-1] if fitting else None


def table(rows: list[dict[str, Any]], base: dict[str, Any] | None) -> str:
    """Accept lengths, and by how much each differs from the base where there is one."""
    lines = ["| run | training s | " + " | ".join(COLUMNS) + " |", "|---|--:|" + "--:|" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[column]:.3f}" + (f" ({row[column] - base[column]:+.3f})" if base else "") for column in COLUMNS]
        lines.append(f"| {row['run']} | {row['training_seconds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True, help="features folder of a work folder of the recipe")
    parser.add_argument("--output", type=Path, required=True, help="a work folder per run goes in here")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--held-out-limit", type=int, default=DEFAULT_LIMIT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of runs")
    return parser
