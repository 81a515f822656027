"""The drafter's learning curve: held-out accept lengths against labels seen, and a straight line through them.

    python benchmarks/plot_drafter_curve.py WORK/checkpoints/curve.jsonl --labels-per-step 896

Writes `drafter-curve.jsonl` (the scored steps alone) and `drafter-curve.png` to the results folder. The line is
fitted by least squares to accept length over the logarithm of labels; it says where more of the same would lead, not
that it would: data, a warm restart or a cool-down bend the curve.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

RULES = {"chain": "#e6842a", "tree8": "#9ecae1", "tree32": "#4292c6", "tree64": "#08519c"}


class Line(NamedTuple):
    """accept length = at_one + per_doubling * log2(labels)."""

    at_one: float
    per_doubling: float

    def labels_for(self, accept_length: float) -> float:
        """Labels at which the line reaches an accept length."""
        return float(2 ** ((accept_length - self.at_one) / self.per_doubling))


def scored_steps(path: Path, labels_per_step: int) -> list[dict[str, Any]]:
    """One record per scored step, the last one where a run was resumed before it.

    Raises:
        ValueError: fewer than two steps were scored.
    """
    by_step = {}
    for text in path.read_text().splitlines():
        record = json.loads(text)
        if "held_out" in record:
            scores = {name: record["held_out"][name] for name in RULES}
            by_step[record["step"]] = {"step": record["step"], "labels": record["step"] * labels_per_step, **scores}
    if len(by_step) < 2:
        raise ValueError(f"a curve needs two scored steps, {path} holds {len(by_step)}.")
    return [by_step[step] for step in sorted(by_step)]


def fit(records: Sequence[dict[str, Any]], rule: str) -> Line:
    """Least squares over all records."""
    doublings = np.log2([record["labels"] for record in records])
    slope, offset = np.polyfit(doublings, [record[rule] for record in records], 1)
    return Line(float(offset), float(slope))


def draw(records: Sequence[dict[str, Any]], target: Path) -> None:
    """Points, their lines, and the goal of the chain."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    labels = [record["labels"] for record in records]
    for rule, colour in RULES.items():
        axes.plot(labels, [record[rule] for record in records], "o-", color=colour, label=rule)
        line = fit(records, rule)
        ahead = np.geomspace(labels[0], labels[-1] * 4, 50)
        axes.plot(ahead, line.at_one + line.per_doubling * np.log2(ahead), ":", color=colour)
    axes.axhline(2.2, color="#888888", linewidth=0.8)
    axes.annotate("goal of the chain", (labels[0], 2.2), color="#555555", va="bottom", fontsize=8)
    axes.set(
        xscale="log", xlabel="labels seen", ylabel="tokens per round, bonus included", title="Held-out accept length"
    )
    axes.legend(frameon=False)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", type=Path)
    parser.add_argument("--labels-per-step", type=int, required=True, help="rows x anchors x drafts per block")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    try:
        records = scored_steps(args.curve, args.labels_per_step)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (args.results / "drafter-curve.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw(records, args.results / "drafter-curve.png")
    for rule, goal in (("chain", 2.2), ("tree32", 1.35 * 2.2)):
        line = fit(records, rule)
        needed = line.labels_for(goal)
        print(
            f"{rule}: {line.per_doubling:+.3f} per doubling of labels; the line reaches {goal:.2f} at "
            f"{needed / 1e6:.1f} M labels, {needed / records[-1]['labels']:.1f} times as many as now"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
