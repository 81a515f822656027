"""Pictures of result lines: nothing measured is left out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from benchmarks import plot


def line(system: str, rate: float, up_together: list[str]) -> dict[str, Any]:
    return {
        "system": system,
        "dataset": "gsm8k",
        "batch_size": 1,
        "up_together": up_together,
        "decode_tokens_per_s": {"median": rate, "min": rate - 1, "max": rate + 1, "n": 3},
    }


def test_each_group_of_servers_keeps_its_own_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[Any] = []
    monkeypatch.setattr(plot, "_finish", lambda figure, lines, path: finished.append(figure))
    wide, narrow = ["plain", "ddtree-16"], ["plain", "ddtree-8"]
    lines = [
        line("plain", 20, wide),
        line("ddtree-16", 25, wide),
        line("plain", 10, narrow),
        line("ddtree-8", 12, narrow),
    ]
    plot.plot_field(lines, "decode_tokens_per_s", "tokens/s", tmp_path / "speed.png")
    (figure,) = finished
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    plt.close(figure)
    assert heights == [[10, 12], [20, 25]]
