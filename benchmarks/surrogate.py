"""Is the drafter's probability a good guess of what the target accepts? Expected against realised, from traces.

    .venv/bin/python -m benchmarks surrogate TRACE [TRACE ...] [--output FILE.jsonl]

A tree is chosen to maximise the accepted tokens that the drafter expects, the sum of its nodes' path probabilities
(paper, Proposition 1 and equation 6). That is a surrogate: the target's own law is not known when drafting. Here is
what came true: the correlation over rounds, the calibration by depth, and the tree against the single trajectory with
as many nodes, both on the same rounds. Intervals are of 95 % over prompts. Traces of a GPU and of a CPU serve alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.flags import exit_status
from benchmarks.harness.intervals import (
    Estimate,
    Floats,
    Resampling,
    columns,
    correlation,
    correlation_terms,
    difference_of_ratios,
    ranks,
    ratio,
    sums_by,
)
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.walks import Bools, Walks, read_walks
from ddtree_sglang.whole_file import replace_text

BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
PROB_EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Bins of the reliability diagram, by the drafter's probability of a path."""
LEAST_TRIALS = 10
"""Fewer nodes than these are no bin."""


def surrogate_record(walks: Walks) -> dict[str, Any]:
    """JSON-ready: all that `table` and the picture show."""
    over = Resampling(walks.num_requests)
    everything = np.ones(len(walks.rounds), dtype=np.bool_)
    said, came = walks.expected(everything), walks.realised(everything)
    return {
        "kind": "surrogate",
        "num_prompts": walks.num_requests,
        "num_rounds": walks.num_rounds,
        "budget": int(walks.places.max()),
        "expected": _mean(walks, over, said).to_json(),
        "realised": _mean(walks, over, came).to_json(),
        "pearson": _correlation(walks, over, said, came).to_json(),
        "spearman": _correlation(walks, over, ranks(said), ranks(came)).to_json(),
        "by_depth": [_depth(walks, over, depth) for depth in range(1, int(walks.depths.max()) + 1)],
        "by_probability": _reliability(walks, over),
        "by_expectation": _by_expectation(walks, over, said, came),
        "by_budget": [_budget(walks, over, budget) for budget in _budgets(walks)],
    }


def _mean(walks: Walks, over: Resampling, values: Floats) -> Estimate:
    """Mean over rounds."""
    return over.estimate(_sums(walks, values, np.ones_like(values)), ratio)


def _sums(walks: Walks, *values: Floats) -> Floats:
    return sums_by(walks.requests, columns(*values), walks.num_requests)


def _correlation(walks: Walks, over: Resampling, x: Floats, y: Floats) -> Estimate:
    return over.estimate(sums_by(walks.requests, correlation_terms(x, y), walks.num_requests), correlation)


def _depth(walks: Walks, over: Resampling, depth: int) -> dict[str, Any]:
    """Of one depth: how many rounds get there, as said and as it came; and the children of accepted nodes alone."""
    at = walks.depths == depth
    ones = np.ones(walks.num_rounds)
    said, came = walks.expected(at), walks.realised(at)
    return {
        "depth": depth,
        "expected": _mean(walks, over, said).to_json(),
        "realised": _mean(walks, over, came).to_json(),
        "excess": over.estimate(_sums(walks, said, ones, came, ones), difference_of_ratios).to_json(),
        "given_parent": {
            "on_spine": _trials(walks, over, at & walks.tried & walks.under_spine),
            "off_spine": _trials(walks, over, at & walks.tried & ~walks.under_spine),
        },
    }


def _trials(walks: Walks, over: Resampling, chosen: Bools) -> dict[str, Any] | None:
    """Of an accepted node its children together: the share that the drafter gave them, and the share that was right."""
    parents = (walks.count(chosen) > 0).astype(np.float64)
    if parents.sum() < LEAST_TRIALS:
        return None
    said = walks.total(chosen, walks.conditionals)
    came = walks.realised(chosen)
    return {
        "trials": int(parents.sum()),
        "said": over.estimate(_sums(walks, said, parents), ratio).to_json(),
        "accepted": over.estimate(_sums(walks, came, parents), ratio).to_json(),
    }


def _reliability(walks: Walks, over: Resampling) -> list[dict[str, Any]]:
    """By bins of a path's probability: the mean of what was said, and the share of these nodes that was accepted."""
    bins = np.clip(np.searchsorted(PROB_EDGES, walks.probs, side="right") - 1, 0, len(PROB_EDGES) - 2)
    rows = []
    for index in range(len(PROB_EDGES) - 1):
        chosen = bins == index
        if chosen.sum() < LEAST_TRIALS:
            continue
        count = walks.count(chosen)
        rows.append(
            {
                "from": PROB_EDGES[index],
                "to": PROB_EDGES[index + 1],
                "nodes": int(chosen.sum()),
                "said": over.estimate(_sums(walks, walks.expected(chosen), count), ratio).to_json(),
                "accepted": over.estimate(_sums(walks, walks.realised(chosen), count), ratio).to_json(),
            }
        )
    return rows


def _by_expectation(walks: Walks, over: Resampling, said: Floats, came: Floats) -> list[dict[str, Any]]:
    """Ten groups of as many rounds, from the least to the most expected: what each accepted."""
    rows = []
    for group in np.array_split(np.argsort(said, kind="stable"), min(10, max(1, len(said) // LEAST_TRIALS))):
        chosen = np.zeros(len(said))
        chosen[group] = 1.0
        rows.append(
            {
                "rounds": len(group),
                "expected": over.estimate(_sums(walks, said * chosen, chosen), ratio).to_json(),
                "realised": over.estimate(_sums(walks, came * chosen, chosen), ratio).to_json(),
            }
        )
    return rows


def _budgets(walks: Walks) -> list[int]:
    largest = int(walks.places.max())
    return [*(budget for budget in BUDGETS if budget < largest), largest]


def _budget(walks: Walks, over: Resampling, budget: int) -> dict[str, Any]:
    """The best tree of so many nodes, beside the single trajectory of as many, as far as the traced tree holds it."""
    tree = walks.places <= budget
    chain = walks.on_spine & (walks.depths <= budget)
    ones = np.ones(walks.num_rounds)
    pairs = {"expected": walks.expected, "realised": walks.realised}
    record: dict[str, Any] = {"budget": budget, "chain_nodes": float(walks.count(chain).mean())}
    for name, of in pairs.items():
        wide, narrow = of(tree), of(chain)
        record[name] = {
            "tree": _mean(walks, over, wide).to_json(),
            "chain": _mean(walks, over, narrow).to_json(),
            "gain": over.estimate(_sums(walks, wide, ones, narrow, ones), difference_of_ratios).to_json(),
        }
    return record


def table(record: dict[str, Any]) -> str:
    """Markdown: the correlation, the depths, tree beside single trajectory."""
    lines = [
        f"{record['num_rounds']} rounds of {record['num_prompts']} prompts, at most {record['budget']} drafted nodes. "
        f"Accepted drafted tokens a round: expected {_cell(record['expected'])}, realised {_cell(record['realised'])}. "
        f"Correlation over rounds: Pearson {_cell(record['pearson'])}, Spearman {_cell(record['spearman'])}.",
        "",
        "| depth | rounds that get there, expected | realised | excess | right after a node of the spine: said "
        "| accepted | after another node: said | accepted |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["by_depth"]:
        parts = [row["given_parent"][side] for side in ("on_spine", "off_spine")]
        given = [_cell(part[name]) if part else "-" for part in parts for name in ("said", "accepted")]
        cells = [str(row["depth"]), *(_cell(row[name]) for name in ("expected", "realised", "excess")), *given]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| nodes | tree, expected | realised | single trajectory, expected | realised | realised gain of the tree |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["by_budget"]:
        said, came = row["expected"], row["realised"]
        values = (said["tree"], came["tree"], said["chain"], came["chain"], came["gain"])
        lines.append(f"| {row['budget']} | " + " | ".join(map(_cell, values)) + " |")
    return "\n".join(lines)


def _cell(estimate: dict[str, float | None]) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def run(args: argparse.Namespace) -> int:
    """Read, compute, write and print."""
    record = surrogate_record(read_walks(args.traces))
    record |= {"traces": portable(args.traces), "provenance": collect_provenance()}
    if args.output:
        replace_text(args.output, json.dumps(record) + "\n")
    print(table(record))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("traces", type=Path, nargs="+", help="files of --speculative-ddtree-trace, greedy requests")
    parser.add_argument("--output", type=Path, help="a JSONL file for the result line")
    args = parser.parse_args(argv)
    return exit_status("surrogate", lambda: run(args))
