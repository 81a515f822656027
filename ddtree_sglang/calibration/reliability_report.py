"""`ddtree reliability`: what a trace says of the drafter's probabilities, as tables and as charts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape

from ddtree_sglang.calibration.recorded import trees_of
from ddtree_sglang.core.reliability import Judged, Reliability
from ddtree_sglang.core.round_loops import EDGES
from ddtree_sglang.viewer.charts import Chart, Line, svg
from ddtree_sglang.viewer.page import html_table, still_page
from ddtree_sglang.viewer.terminal import Ink, aligned
from ddtree_sglang.viewer.trace_file import Run, Trace, TraceError

WIDTHS = (2, 3, 5, 9, 17, 33, 65, 129, 256)
SIDES = ((True, "on the spine"), (False, "off the spine"))
HEAD = ("nodes", "said", "corrected", "accepted")
LARGEST_DOT = 9.0
EXPLAINED = (
    "A node is judged once its parent was accepted. The spine is the root and the path of first choices from it.\n"
    "Each round is corrected by what earlier ones taught, so nothing vouches for itself."
)


def reliability_of(trace: Trace, run: Run) -> Reliability:
    """Judge the run's rounds. A request's last traced round is left out: its end may have cut the path.

    Raises:
        TraceError: no round has a tree whose end is known.
    """
    last = {name: place for place, one in enumerate(run.rounds) for name, _ in one.requests}
    most = max((one.num_nodes or 0 for one in run.rounds), default=0)
    found = Reliability([width for width in WIDTHS if width < most] + [max(most, 2)])
    for place, summary in enumerate(run.rounds):
        parts = [part for part in trace.load(summary).parts if len(part.parents) > 1 and last[part.request_id] != place]
        if parts:
            found.observe(*trees_of(parts))
    if not found.num_trials:
        raise TraceError(
            f"{trace.path} must hold trees of requests that go on, got none: rounds of plain decoding alone, or one "
            "round of each request; serve more."
        )
    return found


def terminal(found: Reliability, ink: Ink) -> str:
    """Tables by depth, by what was said, and by width."""
    lines = [ink("bold", _summary(found)), EXPLAINED]
    for title, rows in tables(found):
        lines += ["", ink("bold", title), *("  " + line for line in aligned(rows))]
    return "\n".join(lines) + "\n"


def _summary(found: Reliability) -> str:
    (said, corrected), (far, near) = found.squares, found.distances
    return (
        f"{found.num_trials:,} drafted nodes judged; mean distance from the truth {far:.3f} as said, {near:.3f} "
        f"corrected; mean square {said:.4f} and {corrected:.4f}"
    )


def tables(found: Reliability) -> Iterator[tuple[str, list[list[str]]]]:
    """Titles and rows, the first one the head."""
    for on_spine, side in SIDES:
        rows = [[str(depth), *_cells(one)] for depth, one in found.by_depth(on_spine).items()]
        yield f"by depth, parent {side}", [["depth", *HEAD], *rows]
    for on_spine, side in SIDES:
        rows = [[_bin_name(edge), *_cells(one)] for edge, one in found.by_said(on_spine).items()]
        yield f"by what the drafter said, parent {side}", [["probability", *HEAD], *rows]
    rows = [
        [str(one.num_nodes), *(f"{value:.3f}" for value in (one.said, one.corrected, one.accepted))]
        for one in found.tokens_by_width()
    ]
    yield "drafted tokens a request and round, by nodes of its tree", [["nodes", *HEAD[1:]], *rows]


def _cells(one: Judged) -> list[str]:
    return [f"{one.trials:,}", *(f"{value:.3f}" for value in (one.said, one.corrected, one.accepted))]


def _bin_name(edge: float) -> str:
    upper = EDGES[list(EDGES).index(edge) + 1]
    return f"{edge:g} to {upper:g}"


def charts(found: Reliability) -> list[Chart]:
    """The reliability diagrams, by depth, and tokens by width."""
    drawn = []
    for on_spine, side in SIDES:
        before = _bins_line("as said", found.by_said(on_spine), lambda one: one.said)
        after = _bins_line("corrected", found.by_corrected(on_spine), lambda one: one.corrected)
        if before.points:
            lines = before, after
            drawn.append(Chart(f"Parent {side}", "probability", "share accepted", lines, diagonal=True, most_y=1.0))
    for on_spine, side in SIDES:
        depths = found.by_depth(on_spine)
        if depths:
            title = f"By depth, parent {side}"
            drawn.append(Chart(title, "depth", "mean", _means(depths), most_y=1.0, x_ticks=tuple(map(float, depths))))
    tokens = found.tokens_by_width()
    named = (("said", "as said"), ("corrected", "corrected"), ("accepted", "came"))
    curves = tuple(
        Line(label, tuple((float(one.num_nodes), getattr(one, name)) for one in tokens)) for name, label in named
    )
    ticks = tuple(float(one.num_nodes) for one in tokens)
    drawn.append(Chart("Drafted tokens a round", "nodes of the tree", "tokens", curves, log_x=True, x_ticks=ticks))
    return drawn


def _bins_line(label: str, bins: Mapping[float, Judged], x: Callable[[Judged], float]) -> Line:
    """Dots whose area is the number of trials."""
    most = max((one.trials for one in bins.values()), default=1)
    points = tuple((x(one), one.accepted) for one in bins.values())
    return Line(label, points, sizes=tuple(2 + (LARGEST_DOT - 2) * (one.trials / most) ** 0.5 for one in bins.values()))


def _means(depths: Mapping[int, Judged]) -> tuple[Line, ...]:
    named = (("said", "as said"), ("corrected", "corrected"), ("accepted", "accepted"))
    return tuple(
        Line(label, tuple((float(depth), getattr(one, name)) for depth, one in depths.items())) for name, label in named
    )


def page(found: Reliability, title: str) -> str:
    """One file that asks no network for anything."""
    drawn = "".join(f"<div>{svg(chart)}</div>" for chart in charts(found))
    sections = [
        f'<p>{escape(_summary(found))}</p><p class="soft">{escape(EXPLAINED)}</p><div class="sides">{drawn}</div>'
    ]
    sections += [f"<h2>{escape(name)}</h2>{html_table(rows)}" for name, rows in tables(found)]
    return still_page(title, sections)
