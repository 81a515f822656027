"""What all pictures share: order and colour of systems, error bars, the note of origin, the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Lines = Sequence[dict[str, Any]]
MARKERS = "osD^vP*X"
ADAPTIVE = "ddtree-adaptive"


TWINS = {"": "", "env": ", another environment", "ngrams": ", texts", "other": ", another drafter"}
"""Words for what stands behind a tree's budget in its name (`harness.systems`)."""


def parts_of(name: str) -> tuple[int, str]:
    """A tree's budget, and what sets it apart from the tree of that budget."""
    budget, _, twin = name.removeprefix(ADAPTIVE).removeprefix("ddtree").removeprefix("-").partition("-")
    return int(budget), twin


def system_order(name: str) -> tuple[int, int, str]:
    """Plain first, then the chain, then trees by budget, then trees that choose theirs; each with its twins."""
    if name == "plain":
        return (0, 0, "")
    if name == "dflash":
        return (1, 0, "")
    return (3 if name.startswith(ADAPTIVE) else 2, *parts_of(name))


def systems_of(lines: Lines) -> list[str]:
    """Systems of the lines, in their order."""
    return sorted({line["system"] for line in lines}, key=system_order)


def system_colour(name: str, names: Sequence[str]) -> Any:
    """Grey for plain, orange for the chain, shades of blue for trees, of green for trees that choose their budget."""
    fixed = {"plain": "#888888", "dflash": "#e6842a"}
    if name in fixed:
        return fixed[name]
    if name.startswith(ADAPTIVE):
        return "#93d1ae" if parts_of(name)[1] else "#2a9d5c"
    trees = [one for one in names if one.startswith("ddtree") and not one.startswith(ADAPTIVE)]
    return plt.get_cmap("Blues")(0.4 + 0.5 * trees.index(name) / (len(trees) - 1) if len(trees) > 1 else 0.7)


def system_label(name: str) -> str:
    """For a legend."""
    if name == "plain":
        return "plain decoding"
    if name == "dflash":
        return "stock chain"
    kind = "adaptive, at most" if name.startswith(ADAPTIVE) else "DDTREE,"
    budget, twin = parts_of(name)
    return f"{kind} {budget} nodes{TWINS.get(twin, f', {twin}')}"


def dataset_colour(index: int) -> Any:
    """Of the index-th data set."""
    return plt.get_cmap("tab10")(index % 10)


def whiskers(values: Sequence[Mapping[str, Any]], middle: str, low: str, high: str) -> list[list[float]]:
    """`yerr` of points that have a middle and two ends."""
    below = [max(0.0, one[middle] - one[low]) for one in values]
    return [below, [max(0.0, one[high] - one[middle]) for one in values]]


def points(
    axes: Any, places: Sequence[float], values: Sequence[Mapping[str, Any]], ends: tuple[str, str, str], **look: Any
) -> None:
    """Points with whiskers; `ends` names each value's middle and its two ends."""
    middle = ends[0]
    axes.errorbar(
        places, [one[middle] for one in values], yerr=whiskers(values, *ends), capsize=2, markersize=4, **look
    )


def plain_axes(axes: Any) -> None:
    """No frame above and to the right, a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)


def powers_of_two(axes: Any, values: Sequence[int], label: str) -> None:
    """A logarithmic axis that names the measured values; 0, which has no logarithm, lies as far below 1 as 2 above."""
    if min(values, default=1) > 0:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        axes.set_xlim(left=-0.3, right=1.3 * max(values))
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(label)


def legend_above(figure: Any, panels: Sequence[Any], columns: int, order: Sequence[str] = ()) -> float:
    """One legend for all panels, each label once, those of `order` first; the share of the figure's height below it."""
    found = {name: one for axes in panels for one, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = {name: found[name] for name in dict.fromkeys([*order, *found]) if name in found}
    # At 8 points a letter is about a sixteenth of an inch wide, and a mark with its gaps seven of them.
    fit = int(figure.get_figwidth() * 16 // (7 + max(map(len, shown), default=0)))
    columns = max(1, min(columns, len(shown), fit))
    figure.legend(shown.values(), shown.keys(), loc="upper center", ncols=columns, frameon=False, fontsize=8)
    inches = 0.12 + 0.18 * -(-len(shown) // columns)
    return float(1.0 - inches / figure.get_figheight())


def finish(figure: Any, lines: Lines, path: Path, top: float) -> None:
    """Say where the numbers come from, and write the file."""
    origin = lines[0]["provenance"]
    cores = origin["cpu_cores"]
    machine = origin["gpu"] or f"{origin['cpu_model']}, {cores} core{'s' if cores > 1 else ''}"
    commit = (origin["git_sha"] or "unknown")[:10] + (" with changes" if origin["dirty"] else "")
    note = f"{machine}; sglang {origin['packages']['sglang']}; commit {commit}; {origin['date'][:10]}"
    figure.text(0.5, 0.005, note, ha="center", fontsize=6.5, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, top))
    figure.savefig(path, dpi=150)
    plt.close(figure)
