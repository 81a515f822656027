"""From measurements to result lines and a table: medians with spread, ratios to plain and to the chain.

Pure arithmetic on the measurements of `python -m benchmarks decode`; it starts nothing and measures nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.stage_times import StageSummary
from ddtree_sglang.core.acceptance_stats import accept_length
from deploy.local.client import Batch


@dataclass(frozen=True)
class Measurement:
    """One repeat: the prompts of one dataset on one system, `batch_size` at once."""

    system: str
    dataset: str
    batch_size: int
    repeat: int
    batch: Batch
    stages: StageSummary | None
    others_cpu_s: float  # processor time of the idle servers meanwhile; shows that they did not disturb

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens of all answers over the wall time, prompt processing included."""
        return self.batch.num_tokens / self.batch.wall_s

    @property
    def decode_tokens_per_s(self) -> float:
        """The rate of one request: tokens after the first over the time after the first, both summed over requests."""
        tokens = sum(len(one.output_ids) - 1 for one in self.batch.generations)
        seconds = sum(one.decode_s for one in self.batch.generations)
        return tokens / seconds if seconds else 0.0

    @property
    def accept_length(self) -> float | None:
        """Tokens per verify round, bonus included, over all requests; None for plain decoding."""
        return accept_length(self.batch.num_tokens, self.batch.num_rounds)

    @property
    def ms_per_round(self) -> float | None:
        """Decode time over verify rounds in ms, seen from the client; None for plain decoding."""
        seconds = sum(one.decode_s for one in self.batch.generations)
        return 1e3 * seconds / self.batch.num_rounds if self.batch.num_rounds else None


Group = tuple[str, str, int]  # system, dataset, batch size


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and count of the repeats."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def _spread_or_none(values: Sequence[float | None]) -> dict[str, float] | None:
    present = [value for value in values if value is not None]
    return spread(present) if present else None


def result_lines(
    measurements: Sequence[Measurement], mismatches: dict[str, int], provenance: dict[str, Any]
) -> list[dict[str, Any]]:
    """One JSON-ready record per system, dataset and batch size, with its ratios and the run's provenance."""
    groups: dict[Group, list[Measurement]] = defaultdict(list)
    for one in measurements:
        groups[one.system, one.dataset, one.batch_size].append(one)
    together = list(dict.fromkeys(one.system for one in measurements))
    rates = {group: median(one.decode_tokens_per_s for one in repeats) for group, repeats in groups.items()}
    return [
        {
            **_summary(group, repeats),
            "ratio_to_plain": _ratio(rates, group, "plain"),
            "ratio_to_chain": _ratio(rates, group, "dflash"),
            "ratios_of_turns": {
                "plain": _of_turns(groups, group, "plain"),
                "chain": _of_turns(groups, group, "dflash"),
            },
            "best_other": _best_other(groups, rates, group),
            "up_together": together,
            "dtype": provenance.get("settings", {}).get("dtype"),
            "prompts_unlike_plain": mismatches.get(group[0], 0),
            "provenance": provenance,
        }
        for group, repeats in groups.items()
    ]


def _ratio(rates: dict[Group, float], group: Group, baseline: str) -> float | None:
    reference = rates.get((baseline, *group[1:]))
    return rates[group] / reference if reference else None


def _of_turns(groups: dict[Group, list[Measurement]], group: Group, baseline: str) -> dict[str, float] | None:
    """Spread of the ratios to the baseline, each of two measurements of one turn."""
    of_turn = {one.repeat: one.decode_tokens_per_s for one in groups.get((baseline, *group[1:]), [])}
    shared = [one for one in groups[group] if of_turn.get(one.repeat)]
    return spread([one.decode_tokens_per_s / of_turn[one.repeat] for one in shared]) if shared else None


def _best_other(
    groups: dict[Group, list[Measurement]], rates: dict[Group, float], group: Group
) -> dict[str, Any] | None:
    """The fastest other system of the same servers, prompts and batch size, and the ratios to it, turn by turn.

    Chosen by its median: the fastest of each turn would be whichever had luck in it.
    """
    others = {other: rate for other, rate in rates.items() if other[1:] == group[1:] and other[0] != group[0]}
    if not others:
        return None
    best = max(others, key=lambda other: others[other])[0]
    ratios = _of_turns(groups, group, best)
    return {"system": best, **ratios} if ratios else None


def _summary(group: Group, repeats: Sequence[Measurement]) -> dict[str, Any]:
    stages = [one.stages for one in repeats if one.stages is not None]
    generations = [answer for one in repeats for answer in one.batch.generations]
    return {
        "kind": "decode",
        "system": group[0],
        "dataset": group[1],
        "batch_size": group[2],
        "num_prompts": len(repeats[0].batch.generations),
        "num_tokens": repeats[0].batch.num_tokens,
        "decode_tokens_per_s": spread([one.decode_tokens_per_s for one in repeats]),
        "output_tokens_per_s": spread([one.output_tokens_per_s for one in repeats]),
        "first_token_s": spread([answer.first_token_s for answer in generations]),
        "accept_length": _spread_or_none([one.accept_length for one in repeats]),
        "ms_per_round": _spread_or_none([one.ms_per_round for one in repeats]),
        "stages": stages[len(stages) // 2].to_json() if stages else None,
        "others_cpu_share": max(one.others_cpu_s / one.batch.wall_s for one in repeats),
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown tables, one per batch size and group of servers: a row per system and dataset."""
    keys = dict.fromkeys(map(_block, lines))
    blocks = []
    for dtype, batch_size, together in sorted(keys, key=lambda key: (key[0] or "", key[1])):
        chosen = [line for line in lines if _block(line) == (dtype, batch_size, together)]
        of_dtype = f", {dtype}" if len({key[0] for key in keys}) > 1 else ""
        blocks.append(_table_of(chosen, f"Batch size {batch_size}{of_dtype}, in turns: {', '.join(together)}"))
    return "\n\n".join([*blocks, *_choosing(lines)])


def _choosing(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What chooses its budget beside the best of what does not, everywhere that both were measured in turns."""
    chosen = [line for line in lines if "adaptive" in line["system"] and line.get("best_other")]
    if not chosen:
        return []
    rows = [
        "### Adaptive beside the best of the others in the same turns",
        "",
        "| requests | prompts | dtype | best other | times its speed | spread |",
        "|--:|---|---|---|--:|---|",
    ]
    for line in sorted(chosen, key=lambda one: (one["dtype"] or "", one["batch_size"], one["dataset"])):
        best = line["best_other"]
        spread_of = f"{best['min']:.2f}-{best['max']:.2f}"
        cells = [line["batch_size"], line["dataset"], line["dtype"] or "-", best["system"], f"{best['median']:.2f}"]
        rows.append("| " + " | ".join(map(str, [*cells, spread_of])) + " |")
    least = min(chosen, key=lambda one: float(one["best_other"]["median"]))
    rows += [
        "",
        f"Least: {least['best_other']['median']:.3f} ({least['dataset']}, requests at once: {least['batch_size']}).",
    ]
    return ["\n".join(rows)]


def _block(line: dict[str, Any]) -> tuple[str | None, int, tuple[str, ...]]:
    return line.get("dtype"), line["batch_size"], tuple(line["up_together"])


def _table_of(chosen: Sequence[dict[str, Any]], title: str) -> str:
    rows = [
        f"### {title}",
        "",
        "| system | prompts | tokens/s per request | spread | tokens/s in all | x plain | x chain "
        "| accept length | ms/round | tree work |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in sorted(chosen, key=lambda entry: entry["dataset"]):
        decode = line["decode_tokens_per_s"]
        stages = line["stages"]
        cells = [
            line["system"],
            line["dataset"],
            f"{decode['median']:.1f}",
            f"{decode['min']:.1f}-{decode['max']:.1f}",
            f"{line['output_tokens_per_s']['median']:.1f}",
            _number(line["ratio_to_plain"]),
            _number(line["ratio_to_chain"]),
            _number((line["accept_length"] or {}).get("median")),
            _number((line["ms_per_round"] or {}).get("median"), 1),
            f"{100 * stages['tree_share']:.1f} %" if stages else "-",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
