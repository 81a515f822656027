"""Pictures of `decode`: bars of speed and of accept length by data set, and where a round's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.pictures import style
from benchmarks.pictures.curves import RATIO, ratio_to_plain

STAGE_COLOURS = {
    "draft": "#9ecae1",
    "verify": "#4292c6",
    "context": "#6baed6",
    "prepare": "#fee391",
    "build": "#fe9929",
    "accept": "#e34a33",
    "commit": "#74c476",
}

MOST_SIZES = 2


def _bars(axes: Any, lines: Sequence[dict[str, Any]], field: str, colours: dict[str, Any]) -> None:
    chosen = [line for line in lines if line[field] is not None]
    names = style.systems_of(chosen)
    datasets = sorted({line["dataset"] for line in chosen})
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        mine = {line["dataset"]: line[field] for line in chosen if line["system"] == name}
        places = [datasets.index(one) + (index - (len(names) - 1) / 2) * width for one in mine]
        medians = [one["median"] for one in mine.values()]
        below = [one["median"] - one["min"] for one in mine.values()]
        above = [one["max"] - one["median"] for one in mine.values()]
        bars = axes.bar(
            places,
            medians,
            width * 0.92,
            yerr=[below, above],
            capsize=2,
            label=style.system_label(name),
            color=colours[name],
            error_kw={"linewidth": 0.8},
        )
        axes.bar_label(bars, [f"{value:.{1 if value >= 10 else 2}f}" for value in medians], fontsize=6, padding=2)
    kinds = [name.rsplit("/", 1)[-1] for name in datasets]
    axes.set_xticks(range(len(datasets)), kinds, fontsize=10 if len(datasets) <= 4 else 8)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def plot_field(lines: Sequence[dict[str, Any]], field: str, label: str, path: Path) -> None:
    """Bars per dataset and system; a row of panels per group of servers that were up together, a column per batch size.

    Each group has baselines of its own, and only what was up together may be compared.
    """
    groups = sorted(
        {tuple(line["up_together"]) for line in lines}, key=lambda group: sorted(map(style.system_order, group))
    )
    sizes = sorted({line["batch_size"] for line in lines})
    systems = style.systems_of(lines)
    colours = {name: style.system_colour(name, systems) for name in systems}
    width = max(5.6, 1.3 * len({line["dataset"] for line in lines}))
    figure, panels = plt.subplots(
        len(groups), len(sizes), figsize=(width * len(sizes), 0.6 + 3.0 * len(groups)), squeeze=False, sharey="col"
    )
    for row, group in zip(panels, groups, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            mine = [line for line in lines if line["batch_size"] == size and tuple(line["up_together"]) == group]
            _bars(axes, mine, field, colours)
            axes.set_title(f"batch size {size}", fontsize=10)
        row[0].set_ylabel(label, fontsize=8)
        if field == "ratio":
            for axes in row:
                axes.axhline(1.0, color="#888888", linewidth=1)
    style.finish(figure, lines, path, style.legend_above(figure, list(panels.flat), 3 * len(sizes), systems))


def plot_stages(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Time per round by stage, stacked: one bar per DDTREE budget, batch size and dataset."""
    chosen = [line for line in lines if line["stages"]]
    chosen.sort(key=lambda line: (line["batch_size"], line["dataset"], style.system_order(line["system"])))
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.28 * len(chosen)))
    for row, line in enumerate(chosen):
        left = 0.0
        for stage, colour in STAGE_COLOURS.items():
            value = line["stages"]["stage_ms"].get(stage, 0.0)
            axes.barh(row, value, left=left, color=colour, label=stage if row == 0 else None)
            left += value
        axes.text(left, row, f" tree work {100 * line['stages']['tree_share']:.1f} %", va="center", fontsize=7)
    labels = [f"{line['system']}, {line['dataset']}, batch {line['batch_size']}" for line in chosen]
    axes.set_yticks(range(len(chosen)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.18, y=0.01)
    axes.set_xlabel("median time per round, ms")
    axes.spines[["top", "right"]].set_visible(False)
    style.finish(figure, chosen, path, style.legend_above(figure, [axes], len(STAGE_COLOURS)))


def draw(lines: style.Lines, stem: Path) -> list[Path]:
    """Every picture of this kind that the lines have data for."""
    sizes = sorted({line["batch_size"] for line in lines})
    # Of many numbers of requests `curves` shows the course; bars show its ends.
    shown = {sizes[0], sizes[-1]} if len(sizes) > MOST_SIZES else set(sizes)
    lines = [line for line in lines if line["batch_size"] in shown]
    kinds = ("speed", "ratio", "accept", "stages")
    speed, ratio, accepted, stages = (stem.with_name(f"{stem.name}-{kind}.png") for kind in kinds)
    plot_field(lines, "decode_tokens_per_s", "decode tokens/s per request", speed)
    drawn = [speed]
    if any(line["ratio_to_plain"] for line in lines):
        of_turns = [{**line, "ratio": ratio_to_plain([line])} for line in lines if line["system"] != "plain"]
        plot_field(of_turns, "ratio", RATIO, ratio)
        drawn.append(ratio)
    if any(line["accept_length"] for line in lines):
        plot_field(lines, "accept_length", "accept length (tokens per round, bonus included)", accepted)
        drawn.append(accepted)
    if any(line["stages"] for line in lines):
        plot_stages(lines, stages)
        drawn.append(stages)
    return drawn
