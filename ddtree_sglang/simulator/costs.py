"""Seconds of a round, from a table that was measured; `simulator.roofline` has them from a data sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.core.cost_model import Cell, CostModel, batch_class, context_class


class Costs(Protocol):
    """What a round of `num_nodes` for each of `batch_size` requests takes; 1 node: nothing is drafted."""

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """`mean_prefix` is the mean committed length of the requests."""
        ...


class TableCosts:
    """A measured table; what lies between its cells is estimated as the server does it."""

    def __init__(self, table: CostTable) -> None:
        self._model = CostModel.of_cells(
            {(size, width, context): spent for (context, size, width), spent in table.seconds.items()}
        )

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """See `Costs`."""
        return float(self._model.seconds(batch_size, mean_prefix, [num_nodes])[0])


def known_model(costs: Costs, sizes: Iterable[int], prefixes: Iterable[float], widths: Sequence[int]) -> CostModel:
    """A server's cost model that has measured all of these."""
    known: dict[Cell, float] = {}
    for size in sizes:
        for prefix in prefixes:
            for width in widths:
                known.setdefault((batch_class(size), width, context_class(prefix)), costs.seconds(size, prefix, width))
    return CostModel.of_cells(known)


def table_of_decode(lines: Iterable[Mapping[str, Any]], block_size: int) -> CostTable:
    """Seconds of rounds from result lines of `python -m benchmarks decode`, prompts of all kinds together.

    Plain decoding's round is its time per token; the chain verifies its block; `ddtree-N` verifies N + 1 nodes. Lines
    of budgets that were asked of a server that adapts are left out (`--one-server`).
    """
    spent: dict[tuple[int, int, int], list[float]] = {}
    for line in lines:
        system, size = str(line["system"]), int(line["batch_size"])
        if "ddtree-0" in line.get("up_together", ()) and system.startswith("ddtree"):
            continue
        if system == "plain":
            width, seconds = 1, 1.0 / line["decode_tokens_per_s"]["median"]
        elif system == "dflash" or system.removeprefix("ddtree-").isdigit():
            width = block_size if system == "dflash" else int(system.removeprefix("ddtree-")) + 1
            seconds = 1e-3 * line["ms_per_round"]["median"]
        else:
            continue
        spent.setdefault((0, size, width), []).append(seconds)
    return CostTable({cell: sum(times) / len(times) for cell, times in spent.items()})
