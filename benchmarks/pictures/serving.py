"""Pictures of `serving`: time to the first token, time per token and throughput against the rate of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.pictures import style
from benchmarks.serving_report import at_rates

PANELS: tuple[tuple[str, str | None, str], ...] = (
    ("ttft_ms", "p50", "time to first token, median, ms"),
    ("tpot_ms", "p50", "time per output token, median, ms"),
    ("output_tokens_per_s", None, "output tokens/s, all requests"),
    ("ttft_ms", "p99", "time to first token, 99th percentile, ms"),
    ("tpot_ms", "p99", "time per output token, 99th percentile, ms"),
    ("concurrency", None, "requests at once, mean"),
)


def _panel(axes: Any, lines: style.Lines, name: str, percentile: str | None) -> None:
    systems = style.systems_of(lines)
    for index, system in enumerate(systems):
        values = at_rates([line for line in lines if line["system"] == system], name, percentile)
        axes.errorbar(
            list(values),
            [one["median"] for one in values.values()],
            yerr=style.whiskers(list(values.values()), "median", "min", "max"),
            color=style.system_colour(system, systems),
            marker=style.MARKERS[index % len(style.MARKERS)],
            label=style.system_label(system),
            capsize=2,
            markersize=4,
            linewidth=1.3,
            elinewidth=0.7,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests per second")
    style.plain_axes(axes)


def draw(lines: style.Lines, stem: Path) -> list[Path]:
    """One picture with six panels; whiskers reach from the least to the greatest turn."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7))
    for axes, (name, percentile, label) in zip(panels.flat, PANELS, strict=True):
        _panel(axes, lines, name, percentile)
        axes.set_title(label, fontsize=10)
    path = stem.with_name(f"{stem.name}-latency.png")
    style.finish(figure, lines, path, style.legend_above(figure, [panels.flat[0]], 8))
    return [path]
