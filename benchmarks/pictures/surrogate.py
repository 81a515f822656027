"""Surrogate against acceptance: what the drafter expected of rounds, depths and budgets, beside what came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.pictures import style

SAID, CAME, CHAIN = "#4292c6", "#222222", "#e6842a"


def _points(axes: Any, places: Sequence[float], values: Sequence[dict[str, float]], **look: Any) -> None:
    style.points(axes, places, values, ("value", "low", "high"), linewidth=1.2, elinewidth=0.8, **look)


def _rounds(axes: Any, line: dict[str, Any]) -> None:
    groups = line["by_expectation"]
    places = [row["expected"]["value"] for row in groups]
    _points(axes, places, [row["realised"] for row in groups], color=CAME, marker="o", label="a tenth of the rounds")
    axes.plot([0, max(places)], [0, max(places)], color=SAID, linewidth=1, linestyle="--", label="as expected")
    pearson, spearman = (line[name]["value"] for name in ("pearson", "spearman"))
    axes.set_title(f"rounds: Pearson {pearson:.2f}, Spearman {spearman:.2f}", fontsize=10)
    axes.set_xlabel("accepted drafted tokens that the drafter expects")
    axes.set_ylabel("accepted drafted tokens")


def _depths(axes: Any, line: dict[str, Any]) -> None:
    rows = line["by_depth"]
    depths = [row["depth"] for row in rows]
    _points(axes, depths, [row["expected"] for row in rows], color=SAID, marker="s", label="expected", linestyle="--")
    _points(axes, depths, [row["realised"] for row in rows], color=CAME, marker="o", label="realised")
    axes.set_title("calibration by depth", fontsize=10)
    axes.set_xticks(depths)
    axes.set_xlabel("depth")
    axes.set_ylabel("share of rounds that get there")
    axes.set_ylim(bottom=0)


def _given_parent(axes: Any, line: dict[str, Any]) -> None:
    for side, colour, label in (
        ("on_spine", "#2a9d5c", "the drafter's first choices"),
        ("off_spine", "#b3306f", "another path"),
    ):
        known = [(row["depth"], row["given_parent"][side]) for row in line["by_depth"] if row["given_parent"][side]]
        if not known:
            continue
        depths = [depth for depth, _ in known]
        look = {"color": colour, "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8, "capsize": 2}
        for name, style_of, marker in (("said", "--", "s"), ("accepted", "-", "o")):
            values = [row[name] for _, row in known]
            axes.errorbar(
                depths,
                [one["value"] for one in values],
                yerr=style.whiskers(values, "value", "low", "high"),
                linestyle=style_of,
                marker=marker,
                label=f"after {label}: {name}",
                **look,
            )
    axes.set_title("is one of the drafted children right?", fontsize=10)
    axes.set_xticks([row["depth"] for row in line["by_depth"]])
    axes.set_xlabel("depth of the children of an accepted node")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.02)


def _budgets(axes: Any, line: dict[str, Any]) -> None:
    rows = line["by_budget"]
    budgets = [row["budget"] for row in rows]
    for side, colour, label in (("tree", SAID, "tree"), ("chain", CHAIN, "single trajectory")):
        said = [row["expected"][side]["value"] for row in rows]
        axes.plot(budgets, said, color=colour, linestyle="--", linewidth=1, label=f"{label}, expected")
        _points(
            axes, budgets, [row["realised"][side] for row in rows], color=colour, marker="o", label=f"{label}, realised"
        )
    # The largest budget is named, and the powers of two that leave it room.
    ticks = [*(budget for budget in (1, 2, 4, 8, 16, 32, 64, 128) if 1.4 * budget < budgets[-1]), budgets[-1]]
    style.powers_of_two(axes, ticks, "nodes besides the root")
    axes.set_title("tree and single trajectory of as many nodes, same rounds", fontsize=10)
    axes.set_ylabel("accepted drafted tokens a round")
    axes.set_ylim(bottom=0)


def plot_surrogate(line: dict[str, Any], path: Path) -> None:
    """Four panels of one tree."""
    figure, panels = plt.subplots(2, 2, figsize=(10.5, 8))
    for axes, fill in zip(panels.flat, (_rounds, _depths, _given_parent, _budgets), strict=True):
        fill(axes, line)
        style.plain_axes(axes)
        axes.legend(frameon=False, fontsize=8)
    what = f"{line['num_rounds']} rounds of {line['num_prompts']} prompts, {line['budget']} nodes"
    figure.suptitle(f"{what}; whiskers: 95 % over prompts", fontsize=10)
    style.finish(figure, [line], path, top=0.98)


def draw(lines: style.Lines, stem: Path) -> list[Path]:
    """A picture per tree."""
    drawn = []
    for line in lines:
        tree = f"-{line['system']}" if "system" in line else ""
        drawn.append(stem.with_name(f"{stem.name}{tree}-surrogate.png"))
        plot_surrogate(line, drawn[-1])
    return drawn
