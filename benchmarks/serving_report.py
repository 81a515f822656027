"""From the records of SGLang's serving client to result lines and a table: medians over turns with their spread.

Pure arithmetic; a ratio is of two systems in one turn, which had the same prompts and the same arrivals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.decode_report import spread

METRICS = {
    "ttft_ms": {"p50": "median_ttft_ms", "p99": "p99_ttft_ms"},
    "tpot_ms": {"p50": "median_tpot_ms", "p99": "p99_tpot_ms"},
    "e2e_ms": {"p50": "median_e2e_latency_ms", "p99": "p99_e2e_latency_ms"},
}
"""Field of a result line -> percentile -> field of the client's record. TPOT leaves a request's first token out."""
THROUGHPUT = "output_throughput"
CONCURRENCY = "concurrency"
COMPLETED = "completed"
BASELINES = {"plain": "plain", "chain": "dflash"}


@dataclass(frozen=True)
class Turn:
    """One system at one rate in one turn; `record` is what the client wrote."""

    system: str
    rate: float
    repeat: int
    num_prompts: int
    record: dict[str, Any]

    @property
    def failed(self) -> int:
        """Requests that were not answered."""
        return self.num_prompts - int(self.record[COMPLETED])

    @property
    def tpot_ms(self) -> float:
        """Median time per output token."""
        return float(self.record[METRICS["tpot_ms"]["p50"]])


Group = tuple[str, float]  # system, rate


def result_lines(turns: Sequence[Turn], mismatches: dict[str, int], provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """One JSON-ready record per system and rate."""
    groups: dict[Group, list[Turn]] = defaultdict(list)
    for one in turns:
        groups[one.system, one.rate].append(one)
    together = list(dict.fromkeys(one.system for one in turns))
    return [
        {
            "kind": "serving",
            "system": system,
            "rate": per_second,
            "num_prompts": repeats[0].num_prompts,
            "failed": sum(one.failed for one in repeats),
            **{
                name: {at: spread([float(one.record[field]) for one in repeats]) for at, field in fields.items()}
                for name, fields in METRICS.items()
            },
            "output_tokens_per_s": spread([float(one.record[THROUGHPUT]) for one in repeats]),
            "concurrency": spread([float(one.record[CONCURRENCY]) for one in repeats]),
            "tpot_ratios_of_turns": {
                name: _ratios(repeats, groups.get((baseline, per_second), [])) for name, baseline in BASELINES.items()
            },
            "up_together": together,
            "dtype": provenance.get("settings", {}).get("dtype"),
            "prompts_unlike_plain": mismatches.get(system, 0),
            "provenance": provenance,
        }
        for (system, per_second), repeats in groups.items()
    ]


def _ratios(repeats: Sequence[Turn], baseline: Sequence[Turn]) -> dict[str, float] | None:
    """How many times as fast a token comes as the baseline's, in each turn that both have."""
    of_turn = {one.repeat: one.tpot_ms for one in baseline}
    ratios = [of_turn[one.repeat] / one.tpot_ms for one in repeats if one.tpot_ms and of_turn.get(one.repeat)]
    return spread(ratios) if ratios else None


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown tables, one per group of servers: a row per rate and system."""
    groups = dict.fromkeys(tuple(line["up_together"]) for line in lines)
    return "\n\n".join(_table_of([line for line in lines if tuple(line["up_together"]) == one], one) for one in groups)


def _table_of(lines: Sequence[dict[str, Any]], together: tuple[str, ...]) -> str:
    rows = [
        f"### In turns: {', '.join(together)}",
        "",
        "| requests/s | system | TTFT p50, ms | p99 | TPOT p50, ms | p99 | tokens/s in all | requests at once "
        "| x plain's TPOT | x chain's | failed |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in sorted(lines, key=lambda one: one["rate"]):
        latencies = [line[name][at] for name in ("ttft_ms", "tpot_ms") for at in ("p50", "p99")]
        cells = [
            f"{line['rate']:g}",
            line["system"],
            *(_spread(one, 1) for one in latencies),
            _spread(line["output_tokens_per_s"], 1),
            _spread(line["concurrency"], 1),
            *(_spread(line["tpot_ratios_of_turns"][name], 2) for name in BASELINES),
            str(line["failed"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _spread(values: dict[str, float] | None, digits: int) -> str:
    if values is None:
        return "-"
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def at_rates(lines: Sequence[dict[str, Any]], name: str, percentile: str | None) -> dict[float, dict[str, float]]:
    """Rate -> median over groups of servers and the extremes of turns, of one system's lines."""
    found: dict[float, list[dict[str, float]]] = defaultdict(list)
    for line in lines:
        found[line["rate"]].append(line[name][percentile] if percentile else line[name])
    return {
        per_second: {
            "median": median(one["median"] for one in values),
            "min": min(one["min"] for one in values),
            "max": max(one["max"] for one in values),
        }
        for per_second, values in sorted(found.items())
    }
