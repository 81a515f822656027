"""Curves of `decode`: against the node budget, as the paper's figure 3, and against the number of requests.

Ratios are of servers that took turns. Where several groups of servers have the same system, the point is the median of
theirs, and its whiskers reach from the least to the greatest ratio of one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.pictures import style

LEAST_POINTS = 3
"""Fewer budgets or numbers of requests are no curve."""
PANELS_IN_A_ROW = 4
RATIO = "times plain decoding's tokens/s per request"
ACCEPTED = "accept length (tokens a round, bonus included)"


def ratio_to_plain(lines: style.Lines) -> dict[str, float] | None:
    """Median over groups of servers, with the extremes of turns; None without plain decoding beside."""
    ratios = [line["ratio_to_plain"] for line in lines if line["ratio_to_plain"]]
    if not ratios:
        return None
    # Lines of an older build have no ratios of single turns.
    turns = [turn for line in lines if (turn := line.get("ratios_of_turns", {}).get("plain"))]
    low = min([*ratios, *(one["min"] for one in turns)])
    return {"median": median(ratios), "min": low, "max": max([*ratios, *(one["max"] for one in turns)])}


def accept_length(lines: style.Lines) -> dict[str, float] | None:
    """Median over groups of servers, with the extremes of repeats; None of plain decoding."""
    known = [line["accept_length"] for line in lines if line["accept_length"]]
    if not known:
        return None
    middle = median(one["median"] for one in known)
    return {"median": middle, "min": min(one["min"] for one in known), "max": max(one["max"] for one in known)}


FIELDS = {RATIO: ratio_to_plain, ACCEPTED: accept_length}


def budgets_of(lines: style.Lines) -> list[int]:
    """Fixed budgets, ascending."""
    trees = {one for one in style.systems_of(lines) if style.system_order(one)[0] == 2}
    return sorted({style.system_order(one)[1] for one in trees})


def _points(field: str, axis: Mapping[int, style.Lines]) -> tuple[list[int], list[dict[str, float]]]:
    found = {place: FIELDS[field](chosen) for place, chosen in axis.items()}
    known = {place: value for place, value in found.items() if value is not None}
    return list(known), list(known.values())


def _curve(axes: Any, places: Sequence[int], values: Sequence[dict[str, float]], **look: Any) -> None:
    style.points(axes, places, values, ("median", "min", "max"), linewidth=1.3, elinewidth=0.7, **look)


def plot_budgets(lines: style.Lines, path: Path) -> None:
    """One panel of speed, one of accept length: a curve per data set, its chain as a dashed line."""
    budgets, datasets = budgets_of(lines), sorted({line["dataset"] for line in lines})
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4))
    for axes, field in zip(panels, FIELDS, strict=True):
        for index, dataset in enumerate(datasets):
            mine = [line for line in lines if line["dataset"] == dataset]
            colour = style.dataset_colour(index)
            by_budget = {budget: [line for line in mine if line["system"] == f"ddtree-{budget}"] for budget in budgets}
            look = {"color": colour, "marker": style.MARKERS[index % len(style.MARKERS)]}
            _curve(axes, *_points(field, by_budget), label=f"DDTREE, {dataset}", **look)
            chain = FIELDS[field]([line for line in mine if line["system"] == "dflash"])
            if chain:
                axes.axhline(chain["median"], color=colour, linestyle="--", linewidth=1)
        axes.plot([], [], color="#444444", linestyle="--", linewidth=1, label="stock chain, same colours")
        if field == RATIO:
            axes.axhline(1.0, color="#888888", linewidth=1, label="plain decoding")
        style.powers_of_two(axes, budgets, "nodes besides the root")
        axes.set_title(field, fontsize=10)
        axes.margins(y=0.08)
        style.plain_axes(axes)
    style.finish(figure, lines, path, style.legend_above(figure, panels, 5))


def plot_requests(lines: style.Lines, path: Path) -> None:
    """A panel per data set: speed of each system against plain decoding's, by the number of requests at once."""
    datasets, systems = sorted({line["dataset"] for line in lines}), style.systems_of(lines)
    sizes = sorted({line["batch_size"] for line in lines})
    columns = min(PANELS_IN_A_ROW, len(datasets))
    rows = -(-len(datasets) // columns)
    size = (4.6 * columns, 0.4 + 3.8 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    panels = list(grid.flat)
    for unused in panels[len(datasets) :]:
        unused.set_visible(False)
    for axes, dataset in zip(panels, datasets, strict=False):
        for index, system in enumerate(systems):
            mine = [line for line in lines if line["dataset"] == dataset and line["system"] == system]
            if system == "plain":
                axes.axhline(
                    1.0, color=style.system_colour(system, systems), linewidth=1, label=style.system_label(system)
                )
                continue
            by_size = {size: [line for line in mine if line["batch_size"] == size] for size in sizes}
            look = {"color": style.system_colour(system, systems), "marker": style.MARKERS[index % len(style.MARKERS)]}
            _curve(axes, *_points(RATIO, by_size), label=style.system_label(system), **look)
        style.powers_of_two(axes, sizes, "requests at once")
        axes.set_title(dataset, fontsize=10)
        style.plain_axes(axes)
    for row in grid:
        row[0].set_ylabel(RATIO, fontsize=8)
    style.finish(figure, lines, path, style.legend_above(figure, panels, 2 * columns))


def draw(lines: style.Lines, stem: Path) -> list[Path]:
    """The curves that have points enough."""
    drawn = []
    smallest = min(line["batch_size"] for line in lines)
    alone = [line for line in lines if line["batch_size"] == smallest]
    if smallest == 1 and len(budgets_of(alone)) >= LEAST_POINTS:
        drawn.append(stem.with_name(f"{stem.name}-budgets.png"))
        plot_budgets(alone, drawn[-1])
    if len({line["batch_size"] for line in lines}) >= LEAST_POINTS:
        drawn.append(stem.with_name(f"{stem.name}-requests.png"))
        plot_requests(lines, drawn[-1])
    return drawn
