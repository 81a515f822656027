"""Pictures of results: `python -m benchmarks plot FILE.jsonl` writes PNG files beside a JSONL file of `decode`.

Reads result lines only. One picture of speed (decode tokens/s per request, whiskers from the slowest to the
fastest repeat), one of accept length, and one of where a round's time goes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STAGE_COLOURS = {
    "draft": "#9ecae1",
    "verify": "#4292c6",
    "context": "#6baed6",
    "prepare": "#fee391",
    "build": "#fe9929",
    "accept": "#e34a33",
    "commit": "#74c476",
}


def system_order(name: str) -> tuple[int, int]:
    """Plain first, then the chain, then trees by budget."""
    if name == "plain":
        return (0, 0)
    if name == "dflash":
        return (1, 0)
    return (2, int(name.rsplit("-", 1)[1]))


def system_colour(name: str, names: Sequence[str]) -> Any:
    """Grey for plain, orange for the chain, shades of blue for trees."""
    if name == "plain":
        return "#888888"
    if name == "dflash":
        return "#e6842a"
    trees = [one for one in names if one.startswith("ddtree")]
    return plt.get_cmap("Blues")(0.4 + 0.5 * trees.index(name) / max(1, len(trees) - 1))


def _bars(axes: Any, lines: Sequence[dict[str, Any]], field: str, colours: dict[str, Any]) -> None:
    chosen = [line for line in lines if line[field] is not None]
    names = sorted({line["system"] for line in chosen}, key=system_order)
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
            label=name,
            color=colours[name],
            error_kw={"linewidth": 0.8},
        )
        axes.bar_label(bars, [f"{value:.1f}" for value in medians], fontsize=6, padding=2)
    axes.set_xticks(range(len(datasets)), datasets)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def plot_field(lines: Sequence[dict[str, Any]], field: str, label: str, path: Path) -> None:
    """Bars per dataset and system; a row of panels per group of servers that were up together, a column per batch size.

    Each group has baselines of its own, and only what was up together may be compared.
    """
    groups = sorted({tuple(line["up_together"]) for line in lines}, key=lambda group: sorted(map(system_order, group)))
    sizes = sorted({line["batch_size"] for line in lines})
    systems = sorted({line["system"] for line in lines}, key=system_order)
    colours = {name: system_colour(name, systems) for name in systems}
    figure, panels = plt.subplots(
        len(groups), len(sizes), figsize=(5.6 * len(sizes), 0.6 + 3.0 * len(groups)), squeeze=False, sharey="col"
    )
    for row, group in zip(panels, groups, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            mine = [line for line in lines if line["batch_size"] == size and tuple(line["up_together"]) == group]
            _bars(axes, mine, field, colours)
            axes.set_title(f"batch size {size}", fontsize=10)
        row[0].set_ylabel(label, fontsize=8)
    shown = {name: one for axes in panels.flat for one, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = {name: shown[name] for name in systems if name in shown}
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="upper center",
        ncols=min(len(shown), 3 * len(sizes)),
        frameon=False,
        fontsize=8,
    )
    _finish(figure, lines, path)


def plot_stages(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Time per round by stage, stacked: one bar per DDTREE budget, batch size and dataset."""
    chosen = [line for line in lines if line["stages"]]
    chosen.sort(key=lambda line: (line["batch_size"], line["dataset"], system_order(line["system"])))
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
    figure.legend(loc="upper center", ncols=len(STAGE_COLOURS), frameon=False, fontsize=8)
    _finish(figure, chosen, path)


def _finish(figure: Any, lines: Sequence[dict[str, Any]], path: Path) -> None:
    origin = lines[0]["provenance"]
    machine = origin["gpu"] or f"{origin['cpu_model']}, {origin['cpu_cores']} cores"
    commit = (origin["git_sha"] or "unknown")[:10] + (" with changes" if origin["dirty"] else "")
    note = f"{machine}; sglang {origin['packages']['sglang']}; commit {commit}; {origin['date'][:10]}"
    figure.text(0.5, 0.005, note, ha="center", fontsize=6.5, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.93))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    """Draw every picture that the file has data for; prints the paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path, help="JSONL written by `python -m benchmarks decode`")
    file = parser.parse_args(argv).file
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        print(f"plot: {file} holds no result line", file=sys.stderr)
        return 1
    speed, accepted, stages = (file.with_name(f"{file.stem}-{kind}.png") for kind in ("speed", "accept", "stages"))
    plot_field(lines, "decode_tokens_per_s", "decode tokens/s per request", speed)
    print(speed)
    if any(line["accept_length"] for line in lines):
        plot_field(lines, "accept_length", "accept length (tokens per round, bonus included)", accepted)
        print(accepted)
    if any(line["stages"] for line in lines):
        plot_stages(lines, stages)
        print(stages)
    return 0
