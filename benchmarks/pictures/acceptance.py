"""Pictures of `acceptance`: the histogram of rounds by their tokens, as the paper's figure 4, and accept lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.acceptance_report import histogram, of_all
from benchmarks.pictures import style


def _histogram(axes: Any, counts: dict[str, list[int]], systems: list[str]) -> None:
    longest, width = max(map(len, counts.values())), 0.84 / len(counts)
    for index, (system, rounds) in enumerate(counts.items()):
        total = sum(rounds)
        mean = sum((place + 1) * count for place, count in enumerate(rounds)) / total
        places = [place + 1 + (index - (len(counts) - 1) / 2) * width for place in range(len(rounds))]
        axes.bar(
            places,
            [100 * count / total for count in rounds],
            width * 0.95,
            color=style.system_colour(system, systems),
            label=f"{style.system_label(system)} (mean {mean:.2f})",
        )
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel("tokens of a round, bonus included")
    axes.set_ylabel("rounds, %")
    axes.legend(frameon=False, fontsize=8)
    style.plain_axes(axes)


def _lengths(axes: Any, lines: style.Lines, systems: list[str]) -> None:
    datasets = list(dict.fromkeys(line["dataset"] for line in lines))
    for index, system in enumerate(systems):
        mine = [line for line in lines if line["system"] == system and line["accept_length"]]
        values = [line["accept_length"] for line in mine]
        rows = [datasets.index(line["dataset"]) + (index - (len(systems) - 1) / 2) * 0.16 for line in mine]
        axes.errorbar(
            [one["value"] for one in values],
            rows,
            xerr=style.whiskers(values, "value", "low", "high"),
            fmt="o",
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            color=style.system_colour(system, systems),
        )
    axes.set_yticks(range(len(datasets)), datasets, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a round, with 95 % interval over prompts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.4, color="#dddddd")


def draw(lines: style.Lines, stem: Path) -> list[Path]:
    """Histogram of all prompts together, accept lengths by data set; nothing where nothing was drafted."""
    counts = {system: histogram(prompts) for system, prompts in of_all(lines).items()}
    counts = {system: counts[system] for system in sorted(counts, key=style.system_order) if sum(counts[system])}
    if not counts:
        return []
    systems = list(counts)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.25, 1))
    _histogram(left, counts, systems)
    _lengths(right, lines, systems)
    path = stem.with_name(f"{stem.name}-histogram.png")
    style.finish(figure, lines, path, top=1.0)
    return [path]
