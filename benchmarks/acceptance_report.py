"""From counts of rounds to accept lengths, gains over the chain and a histogram, with intervals over prompts.

Pure arithmetic on the result lines of `python -m benchmarks acceptance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.intervals import Resampling, columns, difference_of_ratios, ratio
from benchmarks.surrogate import table as surrogate_table

CHAIN, PLAIN = "dflash", "plain"
ALL = "all"


def with_intervals(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with what follows from their counts: accept length, gain over the chain, answers unlike plain's."""
    by_key = {(line["system"], line["dataset"]): line for line in lines}
    return [
        {
            **line,
            "accept_length": accept_length(line["prompts"]),
            "gain_over_chain": None
            if line["system"] == CHAIN
            else gain(line["prompts"], _prompts(by_key, CHAIN, line)),
            "unlike_plain": None if line.get("temperature") else unlike(line["prompts"], _prompts(by_key, PLAIN, line)),
        }
        for line in lines
    ]


def _prompts(by_key: dict[tuple[str, str], dict[str, Any]], system: str, line: dict[str, Any]) -> list[dict[str, Any]]:
    found = by_key.get((system, line["dataset"]))
    return found["prompts"] if found else []


def accept_length(prompts: Sequence[dict[str, Any]]) -> dict[str, float | None] | None:
    """Tokens per round, bonus included, with its interval; None where nothing was drafted."""
    if not any(one["rounds"] for one in prompts):
        return None
    sums = columns([one["tokens"] for one in prompts], [one["rounds"] for one in prompts])
    return Resampling(len(prompts)).estimate(sums, ratio).to_json()


def gain(prompts: Sequence[dict[str, Any]], chain: Sequence[dict[str, Any]]) -> dict[str, float | None] | None:
    """Tokens per round more than the chain's on the same prompts; None without one of the two."""
    if len(chain) != len(prompts) or not any(one["rounds"] for one in prompts):
        return None
    counts = [[one[name] for one in side] for side in (prompts, chain) for name in ("tokens", "rounds")]
    return Resampling(len(prompts)).estimate(columns(*counts), difference_of_ratios).to_json()


def unlike(prompts: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> int | None:
    """Answers that differ from plain decoding's; None while it was not asked."""
    if not plain:
        return None
    return sum(mine["answer"] != theirs["answer"] for mine, theirs in zip(prompts, plain, strict=True))


def histogram(prompts: Sequence[dict[str, Any]]) -> list[int]:
    """Rounds by accepted drafted tokens, from none on, of all prompts together."""
    counts = [one["histogram"] for one in prompts]
    longest = max(map(len, counts), default=0)
    return [sum(one[place] for one in counts if place < len(one)) for place in range(longest)]


def of_all(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """System -> its prompts of all datasets that every system was asked."""
    systems = list(dict.fromkeys(line["system"] for line in lines))
    asked = [{line["dataset"] for line in lines if line["system"] == system} for system in systems]
    shared = set.intersection(*asked) if asked else set()
    return {
        system: [
            one for line in lines if line["system"] == system and line["dataset"] in shared for one in line["prompts"]
        ]
        for system in systems
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: accept length by dataset and system, the histogram, then each tree's surrogate."""
    counted = [line for line in lines if line["kind"] == "acceptance"]
    together = of_all(counted)
    rows = [
        "| system | prompts | tokens a round | more than the chain | answers unlike plain's |",
        "|---|---|--:|--:|--:|",
    ]
    rows += [_row(line["system"], line["dataset"], line) for line in counted]
    drawn = {"temperature": max((line.get("temperature", 0.0) for line in counted), default=0.0)}
    for line in with_intervals([{"system": s, "dataset": ALL, "prompts": p, **drawn} for s, p in together.items()]):
        rows.append(_row(line["system"], ALL, line))
    blocks = ["\n".join(rows), _histogram_table(together)]
    blocks += [f"### {line['system']}\n\n{surrogate_table(line)}" for line in lines if line["kind"] == "surrogate"]
    return "\n\n".join(block for block in blocks if block)


def _row(system: str, dataset: str, line: dict[str, Any]) -> str:
    unlike_plain = "-" if line["unlike_plain"] is None else f"{line['unlike_plain']} of {len(line['prompts'])}"
    cells = [system, dataset, _cell(line["accept_length"]), _cell(line["gain_over_chain"]), unlike_plain]
    return "| " + " | ".join(cells) + " |"


def _histogram_table(together: dict[str, list[dict[str, Any]]]) -> str:
    counts = {system: histogram(prompts) for system, prompts in together.items()}
    counts = {system: rounds for system, rounds in counts.items() if sum(rounds)}
    if not counts:
        return ""
    longest = max(map(len, counts.values()))
    rows = [
        "| share of rounds by tokens, bonus included | " + " | ".join(map(str, range(1, longest + 1))) + " |",
        "|---|" + "--:|" * longest,
    ]
    for system, rounds in counts.items():
        shares = [100 * count / sum(rounds) for count in rounds] + [0.0] * (longest - len(rounds))
        rows.append(f"| {system} | " + " | ".join(f"{share:.1f} %" for share in shares) + " |")
    return "\n".join(rows)


def _cell(estimate: dict[str, float | None] | None) -> str:
    if estimate is None or None in estimate.values():
        return "-"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
