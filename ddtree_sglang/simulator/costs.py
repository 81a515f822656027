"""Seconds of a round, from a table that was measured; `simulator.roofline` has them from a data sheet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddtree_sglang.calibration.table import CostTable, CostTableError, context_name
from ddtree_sglang.core.cost_model import Cell, CostModel, batch_class, context_class


class Costs(Protocol):
    """What a round of `num_nodes` for each of `batch_size` requests takes; 1 node: nothing is drafted."""

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """`mean_prefix` is the mean committed length of the requests."""
        ...


class TableCosts:
    """A measured table; what lies between its cells is estimated as the server does it."""

    def __init__(self, table: CostTable) -> None:
        self.table = table
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


def load_table(path: Path, block_size: int | None) -> CostTable:
    """A table of `CostTable.load`, or the result lines of `python -m benchmarks decode` in a file called `.jsonl`.

    Args:
        block_size: nodes that the result's chain verified, which its lines do not say; None leaves the chain out.

    Raises:
        CostTableError: the file is neither, or its lines are of rounds in several dtypes.
    """
    if path.suffix != ".jsonl":
        return CostTable.load(path)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        systems = [line for line in lines if isinstance(line, dict) and "system" in line]
        dtypes = {str(line.get("dtype")) for line in systems}
        if len(dtypes) > 1:
            raise CostTableError(
                f"{path} must hold rounds of one dtype, got {sorted(dtypes)}; keep the lines of one of them."
            )
        table = table_of_decode(systems, block_size)
    except OSError as error:
        raise CostTableError(f"a table of costs must be a readable file, got {path}: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CostTableError(
            f"{path} must hold result lines of `benchmarks decode`, got something else: {error!r:.120}; give such a "
            "file, or a table of `ddtree calibrate`."
        ) from error
    if not table.seconds:
        raise CostTableError(
            f"{path} must hold seconds of rounds by requests and nodes, got {len(systems)} result lines without any; "
            "give the lines of a run with plain decoding and fixed trees."
        )
    return table


def table_of_decode(lines: Iterable[Mapping[str, Any]], block_size: int | None, *, asked: bool = False) -> CostTable:
    """Seconds of rounds from result lines of `python -m benchmarks decode`, prompts of all kinds together.

    Plain decoding's round is its time per token; the chain verifies its block; `ddtree-N` verifies N + 1 nodes. Lines
    of budgets that were asked of a server that adapts (`--one-server`) count if `asked`; without a block the chain's
    are left out.
    """
    spent: dict[tuple[int, int, int], list[float]] = {}
    for line in lines:
        system, size = str(line["system"]), int(line["batch_size"])
        is_asked = "ddtree-0" in line.get("up_together", ()) and system.startswith("ddtree")
        if (is_asked and not asked) or system == "ddtree-0":
            continue
        if system == "plain":
            width, seconds = 1, 1.0 / line["decode_tokens_per_s"]["median"]
        elif system == "dflash" and block_size is not None:
            width, seconds = block_size, 1e-3 * line["ms_per_round"]["median"]
        elif system.removeprefix("ddtree-").isdigit():
            width, seconds = int(system.removeprefix("ddtree-")) + 1, 1e-3 * line["ms_per_round"]["median"]
        else:
            continue
        spent.setdefault((0, size, width), []).append(seconds)
    return CostTable({cell: sum(times) / len(times) for cell, times in spent.items()})


def guesses(
    table: CostTable, requests: Sequence[int], widths: Sequence[int], prefixes: Iterable[float] = ()
) -> list[str]:
    """What a replay of so many requests at once would have to guess, in words; empty where all was measured.

    Args:
        widths: nodes of the rounds that it plays, the chain's and each tree's; plain rounds it plays besides.
        prefixes: committed lengths at which it plays them.
    """
    found = []
    known = {batch_class(size) for _, size, _ in table.seconds}
    if unknown := [size for size in requests if batch_class(size) not in known]:
        found.append(f"no round of {_named(unknown)} requests was measured: what is said of them is a guess")
    by_lack: dict[tuple[int, ...], list[int]] = {}
    for size in (size for size in requests if batch_class(size) in known):
        measured = {width for _, of, width in table.seconds if batch_class(of) == batch_class(size)}
        lacks = tuple(width for width in sorted({1, *widths}) if not _is_known(width, measured))
        by_lack.setdefault(lacks, []).append(size)
    for lacks, sizes in by_lack.items():
        if 1 in lacks:
            found.append(
                f"no plain round of {_named(sizes)} requests was measured: plain decoding, and what is said of the "
                "others in its terms, are guesses there"
            )
        if wide := [width for width in lacks if width > 1]:
            found.append(
                f"no round of {_named(wide)} nodes was measured, nor close ones on both sides, with {_named(sizes)} "
                "requests"
            )
    contexts = {context_class(prefix) for prefix in prefixes} - {context for context, _, _ in table.seconds}
    found += [f"no round was measured in {context_name(context)}" for context in sorted(contexts)]
    return found


def _is_known(width: int, measured: set[int]) -> bool:
    """Measured, or between drafted widths that were, neither further off than by a factor of two."""
    drafted = measured - {1}
    below = any(one <= width <= 2 * one for one in drafted)
    above = any(width <= one <= 2 * width for one in drafted)
    return width in measured or (width > 1 and below and above)


def _named(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
