"""Speed and accept length against the node budget, as in the paper's figure 3: plain, stock DFLASH, DDTREE 1 to 64.

    .venv/bin/python -m benchmarks budget_sweep [--model M --draft D] [any flag of `decode`]

It is `decode` with one request at a time and these budgets, asked of the server that adapts, so that all of them take
turns with both baselines however little memory there is. `python -m benchmarks plot FILE` draws the curve.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import decode
from benchmarks.harness.results import new_result

BUDGETS = (1, 2, 4, 8, 16, 32, 64)


def main(argv: Sequence[str]) -> int:
    """Command line entry: flags that are given win over those of the sweep."""
    output = new_result("budget-sweep", ".jsonl")
    swept = ["--budgets", *map(str, BUDGETS), "--adaptive", str(max(BUDGETS)), "--one-server", "--batch-sizes", "1"]
    return decode.main([*swept, "--output", str(output), *argv])
