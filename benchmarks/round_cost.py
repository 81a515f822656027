"""What a round costs in plain decoding steps, by system and batch size, from the result lines of `decode`.

    python -m benchmarks round_cost FILE.jsonl [...]

A system breaks even with plain decoding where its accept length equals this number. The cost of a
round depends on shapes alone, so this table holds for targets and drafters without weights, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any


def round_costs(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """(system, batch size) -> rounds in plain steps, the mean over datasets; plain of the same server group."""
    lines = list(lines)

    def group(line: dict[str, Any]) -> tuple[Any, ...]:
        return (*line["up_together"], line["dataset"], line["batch_size"])

    step_ms = {group(line): 1e3 / line["decode_tokens_per_s"]["median"] for line in lines if line["system"] == "plain"}
    costs: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if line["ms_per_round"] is not None and group(line) in step_ms:
            cost = line["ms_per_round"]["median"] / step_ms[group(line)]
            costs.setdefault((line["system"], line["batch_size"]), []).append(cost)
    return {key: mean(values) for key, values in costs.items()}


def cost_table(costs: dict[tuple[str, int], float]) -> str:
    """Markdown: a row per system, a column per batch size."""
    sizes = sorted({size for _, size in costs})
    systems = list(dict.fromkeys(system for system, _ in costs))
    rows = ["| round cost, plain steps | " + " | ".join(f"batch {size}" for size in sizes) + " |"]
    rows.append("|---|" + "---:|" * len(sizes))
    for system in systems:
        cells = [f"{costs[system, size]:.2f}" if (system, size) in costs else "" for size in sizes]
        rows.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Print the table of all files together."""
    if not argv:
        print("usage: python -m benchmarks round_cost FILE.jsonl [...]", file=sys.stderr)
        return 2
    texts = [Path(name).read_text(encoding="utf-8") for name in argv]
    costs = round_costs(json.loads(line) for text in texts for line in text.splitlines() if line)
    if not costs:
        print("round_cost: no line has both a round time and a plain server beside it", file=sys.stderr)
        return 1
    print(cost_table(costs))
    return 0
