"""A table of costs as a person reads it: in the terminal, and as charts for a page or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape

from ddtree_sglang.calibration.table import CostTable, cliffs, context_name, outdone
from ddtree_sglang.viewer.charts import Chart, Line, stacked, svg
from ddtree_sglang.viewer.layout import plain_line
from ddtree_sglang.viewer.page import html_table, still_page
from ddtree_sglang.viewer.terminal import Ink, aligned

BAR = 44
CLIFF_SIGN, OUTDONE_SIGN = "▲", "○"
LEGEND = f"{CLIFF_SIGN} a cliff: the time jumps here   {OUTDONE_SIGN} never worth it: a wider round takes no longer"
BREAK_EVEN = "tokens a request must get in a round to draw with plain decoding"
RATES = "tokens per second of all requests, with what the texts served so far had accepted"
NODES = "verified nodes of each request"
Grid = Mapping[int, Mapping[int, float]]
"""By requests, by nodes."""


def describe(table: CostTable) -> str:
    """Whose costs these are, in one line; empty where the table does not say."""
    facts = table.facts
    model = str(facts.get("model_path") or "").rstrip("/").rsplit("/", 1)[-1]
    named = [model, *(str(facts.get(name) or "") for name in ("dtype", "attention_backend"))]
    machine = facts.get("accelerators") or facts.get("processor") or ""
    named.append(", ".join(map(str, machine)) if isinstance(machine, list) else str(machine))
    return plain_line(", ".join(one for one in named if one))


def terminal(table: CostTable, ink: Ink) -> str:
    """All contexts: times, break-even and rates as tables, and a bar for each width of each batch."""
    lines = [one for one in (describe(table),) if one]
    for context in table.contexts():
        lines += ["", ink("bold", context_name(context)), *_context_lines(table, context, ink)]
    return "\n".join(lines).strip("\n") + "\n"


def _context_lines(table: CostTable, context: int, ink: Ink) -> Iterator[str]:
    for title, rows in _grids(table, context):
        yield ""
        yield f"  {title}"
        yield from ("  " + line for line in aligned(rows))
    for size in table.sizes(context):
        yield ""
        yield from _bars(table.curve(context, size), size, ink)
    yield ""
    yield ink("dim", "  " + LEGEND)


def _grids(table: CostTable, context: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Titles and rows, the first one the head."""
    sizes = table.sizes(context)
    seconds = {size: table.curve(context, size) for size in sizes}
    yield "ms a round", _rows(seconds, lambda value: f"{1e3 * value:.4g}")
    shares = {size: table.break_even(context, size) for size in sizes}
    if any(shares.values()):
        yield BREAK_EVEN, _rows(shares, lambda value: f"{value:.2f}")
    rates = {size: table.rates(context, size) for size in sizes}
    if table.drafted and any(rates.values()):
        yield RATES, _rows(rates, lambda value: f"{value:.4g}")


def _requests(size: int) -> str:
    return f"{size} requests" if size > 1 else "1 request"


def _rows(grid: Grid, shown: Callable[[float], str]) -> list[list[str]]:
    widths = sorted({width for curve in grid.values() for width in curve})
    head = ["nodes", *map(_requests, grid)]
    return [head, *([str(n), *(shown(curve[n]) if n in curve else "-" for curve in grid.values())] for n in widths)]


def _bars(curve: Mapping[int, float], size: int, ink: Ink) -> Iterator[str]:
    jumps, beaten, most = cliffs(curve), outdone(curve), max(curve.values())
    yield f"  {_requests(size)}"
    for width, spent in curve.items():
        bar = "█" * max(1, round(BAR * spent / most))
        signs = (CLIFF_SIGN if width in jumps else "") + (OUTDONE_SIGN if width in beaten else "")
        yield f"  {width:>5} {bar} {1e3 * spent:.4g} ms{' ' + ink('root', signs) if signs else ''}".rstrip()


def charts(table: CostTable, context: int) -> list[Chart]:
    """Times, what a round must bring, and rates, by nodes; a line for each number of requests."""
    sizes = table.sizes(context)
    seconds = {size: table.curve(context, size) for size in sizes}
    widths = tuple(float(n) for n in sorted({width for curve in seconds.values() for width in curve}))
    ticks = tuple(n for n in widths if n in (1, 2, 3, 5, 9, 17, 33, 65, 129)) or widths
    signs = [
        (float(n), 1e3 * spent, CLIFF_SIGN if n in cliffs(curve) else OUTDONE_SIGN)
        for curve in seconds.values()
        for n, spent in curve.items()
        if n in cliffs(curve) | outdone(curve)
    ]
    shares = {size: table.break_even(context, size) for size in sizes}
    rates = {size: table.rates(context, size) for size in sizes} if table.drafted else {}
    found = []
    for title, unit, grid, factor, marks in (
        ("Time of a round", "ms", seconds, 1e3, signs),
        ("Tokens a round must bring to draw with plain decoding", "tokens a request", shares, 1.0, []),
        ("Tokens per second, all requests", "tokens/s", rates, 1.0, []),
    ):
        if lines := _lines(grid, factor):
            found.append(Chart(title, NODES, unit, lines, log_x=True, marks=tuple(marks), x_ticks=ticks))
    return found


def _lines(grid: Grid, factor: float) -> tuple[Line, ...]:
    return tuple(
        Line(_requests(size), tuple((float(n), factor * value) for n, value in curve.items()))
        for size, curve in grid.items()
        if curve
    )


def page(table: CostTable, title: str) -> str:
    """One file that asks no network for anything."""
    sections = [f'<p>{escape(describe(table))}</p><p class="soft">{escape(LEGEND)}</p>']
    for context in table.contexts():
        drawn = "".join(f"<div>{svg(chart)}</div>" for chart in charts(table, context))
        sections.append(f'<h2>{escape(context_name(context))}</h2><div class="sides">{drawn}</div>')
        sections += [f"<h2>{escape(name)}</h2>{html_table(rows)}" for name, rows in _grids(table, context)]
    return still_page(title, sections)


def picture(table: CostTable, context: int) -> str:
    """The first context's charts, one below another, as an SVG file."""
    return stacked([svg(chart) for chart in charts(table, context)])
