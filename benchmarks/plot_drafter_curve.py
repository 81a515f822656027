"""The drafter's learning curve: held-out accept lengths against labels seen, and a straight line through them.

    python -m benchmarks plot_drafter_curve WORK/checkpoints/curve.jsonl --labels-per-step 896 \
        --from-step 1500 --cooled 980 4400 7000 --check-step 4400

Writes `drafter-curve.jsonl` (the scored steps alone) and `drafter-curve.png` to the results folder. The line is
fitted by least squares to accept length over the logarithm of labels. It extrapolates a run that goes on unchanged; new
data, a warm restart or a cool-down bend the curve. So lines through several choices of points are printed, and
beside the last score what a line through earlier steps predicted for it.
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

    def at(self, labels: Any) -> Any:
        """Accept length after so many labels, a number or an array."""
        return self.at_one + self.per_doubling * np.log2(labels)

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
            by_step[record["step"]] = {
                "step": record["step"],
                "labels": record["step"] * labels_per_step,
                **record["held_out"],
            }
    if len(by_step) < 2:
        raise ValueError(f"a curve needs two scored steps, {path} holds {len(by_step)}.")
    return [by_step[step] for step in sorted(by_step)]


def fit(records: Sequence[dict[str, Any]], rule: str) -> Line:
    """Least squares over all records."""
    doublings = np.log2([record["labels"] for record in records])
    slope, offset = np.polyfit(doublings, [record[rule] for record in records], 1)
    return Line(float(offset), float(slope))


def report(records: Sequence[dict[str, Any]], from_step: int, cooled: Sequence[int], check_step: int | None) -> None:
    """What each choice of points predicts for the goals."""
    choices = {
        "all scored steps": list(records),
        f"steps from {from_step} on": [record for record in records if record["step"] >= from_step],
        "cooled-down steps": [record for record in records if record["step"] in cooled],
    }
    for rule, goal in (("chain", 2.2), ("tree32", 1.35 * 2.2)):
        for name, points in choices.items():
            if len(points) < 2:
                continue
            line = fit(points, rule)
            print(
                f"{rule}, {name} ({len(points)}): {line.per_doubling:+.3f} per doubling of labels, "
                f"{goal:.2f} at {line.labels_for(goal) / 1e6:.1f} M labels"
            )
        early = [record for record in records if from_step <= record["step"] <= (check_step or 0)]
        if len(early) > 1:
            line, last = fit(early, rule), records[-1]
            print(
                f"{rule}, steps {from_step} to {check_step}: {line.at(last['labels']):.3f} predicted for step "
                f"{last['step']}, {last[rule]:.3f} measured"
            )


def draw(records: Sequence[dict[str, Any]], from_step: int, target: Path) -> None:
    """Points, the lines through those from a step on, and the goal of the chain."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    labels = [record["labels"] for record in records]
    for rule, colour in RULES.items():
        axes.plot(labels, [record[rule] for record in records], "o-", color=colour, label=rule)
        fitted = [record for record in records if record["step"] >= from_step]
        ahead = np.geomspace(fitted[0]["labels"], labels[-1] * 4, 50)
        axes.plot(ahead, fit(fitted, rule).at(ahead), ":", color=colour)
    axes.axhline(2.2, color="#888888", linewidth=0.8)
    axes.annotate("goal of the chain", (labels[-1] * 4, 2.2), color="#555555", va="top", ha="right", fontsize=8)
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
    parser.add_argument("--from-step", type=int, default=0, help="first step whose score the drawn line goes through")
    parser.add_argument("--cooled", type=int, nargs="*", default=[], help="steps at which the learning rate had ended")
    parser.add_argument("--check-step", type=int, help="what the line up to this step says of the last one")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    try:
        records = scored_steps(args.curve, args.labels_per_step)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (args.results / "drafter-curve.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw(records, args.from_step, args.results / "drafter-curve.png")
    report(records, args.from_step, args.cooled, args.check_step)
    return 0
