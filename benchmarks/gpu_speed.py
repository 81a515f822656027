"""The speed sections of `gpu_proof`: plain decoding, the stock chain and DDTREE in turns, by the benchmark `decode`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu_cases import Pair
from benchmarks.gpu_judge import Finding
from benchmarks.harness.gpu_lab import Lab
from benchmarks.round_cost import cost_table, round_costs

SYSTEMS = 3
"""Plain decoding, the chain, one tree: with more at once, a target of 8 billion weights would not fit in 80 GB."""


def pair_speed(lab: Lab, pair: Pair, budget: int) -> Finding:
    """Measure one budget on a pair; lines go to speed-<pair>-<budget>.jsonl, ratios into the reason."""
    lines = lab.out / f"speed-{pair}-{budget}.jsonl"
    status = lab.python("-m", "benchmarks", "decode", *_flags(lab, pair, budget), "--output", str(lines))
    if status or not lines.exists():
        return Finding(False, f"status {status}")
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    table = cost_table(round_costs(found))
    lab.say(table)
    lines.with_suffix(".cost.md").write_text(table + "\n", encoding="utf-8")
    return Finding(True, ratios(found))


def _flags(lab: Lab, pair: Pair, budget: int) -> list[str]:
    machine, setting = lab.setting.machine, lab.setting
    model, draft = setting.pair(pair)
    on_gpu = machine.kind == "cuda"
    batches = ("1", "8", "32") if on_gpu else ("1", "2")
    prompts, tokens, repeats, pool = ("32", "64", "3", "32768") if on_gpu else ("2", "12", "2", "4096")
    flags = [
        *("--model", model, "--draft", draft, "--datasets", "held-out", "--dtype", "bfloat16", "--no-trace"),
        *("--allow-mismatch", "--budgets", str(budget), "--adaptive", "0", "--servers-at-once", str(SYSTEMS)),
        *("--prompts", prompts, "--max-new-tokens", tokens, "--repeats", repeats, "--max-total-tokens", pool),
        *("--batch-sizes", *batches, "--start-timeout", str(setting.start_timeout_s)),
        *("--client-timeout", str(setting.client_timeout_s), "--server-logs", str(lab.out / "servers")),
    ]
    of_servers = list(setting.server_flags)
    if pair == "shape" and on_gpu:
        of_servers.append("--load-format=dummy")
    if on_gpu:
        of_servers += [f"--mem-fraction-static={machine.mem_fraction(SYSTEMS)}", "--disable-prefill-cuda-graph"]
        of_servers += [f"--attention-backend={lab.speed_backend}", "--cuda-graph-bs-decode", *batches]
    return [*flags, *(f"--server-flag={flag}" for flag in of_servers)]


def ratios(lines: Iterable[dict[str, Any]]) -> str:
    """Every tree's ratio to plain decoding and to the chain by batch size: the median of turns, smallest to largest."""
    told = []
    for line in lines:
        if line["system"].startswith("ddtree"):
            parts = [f"{_ratio(line, name)} x {name}" for name in ("plain", "chain")]
            accept = (line["accept_length"] or {}).get("median", 1.0)
            told.append(f"batch {line['batch_size']}: {', '.join(parts)}, accept length {accept:.2f}")
    return "; ".join(told)


def _ratio(line: dict[str, Any], name: str) -> str:
    turns = line["ratios_of_turns"][name]
    return "-" if turns is None else f"{turns['median']:.2f} ({turns['min']:.2f}-{turns['max']:.2f})"
