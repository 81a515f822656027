"""Charts as SVG text: lines over one axis. No script, no style sheet; they stand in a page or alone in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#8250df", "#cf222e", "#bf3989", "#57606a", "#bc4c00")
"""Readable on white and on black."""
LEFT, TOP, BOTTOM, LETTER = 62, 34, 44, 6.7
FONT = 'font-family="-apple-system, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif"'
WIDTH, HEIGHT = 530, 330
MIN_LOG = 1e-9


@dataclass(frozen=True)
class Line:
    """Points `(x, y)` in ascending x; `sizes` are the dots' radii in pixels where they say something."""

    label: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False
    sizes: tuple[float, ...] = ()
    colour: str | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn. `marks` are points with a sign and its meaning; `diagonal` is the line on which y equals x."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    diagonal: bool = False
    most_y: float | None = None
    marks: tuple[tuple[float, float, str], ...] = ()
    x_ticks: tuple[float, ...] = ()


def svg(chart: Chart, width: int = WIDTH, height: int = HEIGHT, *, alone: bool = False) -> str:
    """The chart, at least 240 by 160 pixels.

    Args:
        alone: of a file of its own: with its name space and a white ground.

    Raises:
        ValueError: no line has a point.
    """
    points = [point for line in chart.lines for point in line.points]
    if not points:
        raise ValueError(f"a chart must have points, got none for {chart.title!r}; leave it out")
    frame = _Frame.of(chart, points, width, height)
    parts = [*_axes(chart, frame), *_drawn_lines(chart, frame), *_marks(chart, frame), *_legend(chart, frame)]
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>' if alone else ""
    space = ' xmlns="http://www.w3.org/2000/svg" color="#1f2328"' if alone else ""
    return (
        f'<svg{space} class="chart" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(chart.title)}" {FONT} font-size="12" fill="currentColor">{ground}{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Frame:
    """Where values lie."""

    width: int
    height: int
    right: int
    least_x: float
    most_x: float
    most_y: float
    log_x: bool

    @classmethod
    def of(cls, chart: Chart, points: Sequence[tuple[float, float]], width: int, height: int) -> _Frame:
        longest = max((len(line.label) for line in chart.lines), default=0)
        right = 16 if longest == 0 else round(34 + LETTER * longest)
        xs = [x for x, _ in points]
        most_y = chart.most_y or max(y for _, y in points) * 1.05
        least_x, most_x = min(xs), max(xs)
        if chart.diagonal:
            least_x, most_x = 0.0, max(most_x, most_y)
        return cls(width, height, right, least_x, most_x, max(most_y, MIN_LOG), chart.log_x)

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high, at = (self._scaled(one) for one in (self.least_x, self.most_x, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return LEFT + share * (self.width - LEFT - self.right)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return self.height - BOTTOM - (self.height - TOP - BOTTOM) * value / self.most_y

    def _scaled(self, value: float) -> float:
        return math.log2(max(value, MIN_LOG)) if self.log_x else value


def ticks(most: float, count: int = 5) -> list[float]:
    """Round values from 0 to `most`, about `count` of them."""
    if most <= 0:
        return [0.0]
    step = 10.0 ** math.floor(math.log10(most / count))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * count >= most * 0.999)
    return [round(index * step, 12) for index in range(int(most / step + 1e-9) + 1)]


def _x_ticks(chart: Chart, frame: _Frame) -> list[float]:
    if chart.x_ticks:
        return list(chart.x_ticks)
    if not chart.log_x:
        return [value for value in ticks(frame.most_x) if value >= frame.least_x]
    low, high = math.ceil(math.log2(frame.least_x)), math.floor(math.log2(frame.most_x))
    return [2.0**power for power in range(low, high + 1)]


def _axes(chart: Chart, frame: _Frame) -> list[str]:
    left, right, base = LEFT, frame.width - frame.right, frame.height - BOTTOM
    parts = [f'<g font-weight="600"><text x="{left}" y="18">{escape(chart.title)}</text></g>']
    for value in ticks(frame.most_y):
        at = frame.y(value)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#8c959f" stroke-opacity=".35"/>')
        parts.append(f'<text x="{left - 7}" y="{at + 4:.1f}" text-anchor="end" opacity=".75">{value:g}</text>')
    for value in _x_ticks(chart, frame):
        at = frame.x(value)
        parts.append(f'<path d="M{at:.1f} {base}v4" stroke="#8c959f"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 17}" text-anchor="middle" opacity=".75">{value:g}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{frame.height - 8}" text-anchor="middle">{escape(chart.x_label)}</text>')
    centre = (TOP + base) / 2
    parts.append(
        f'<text x="14" y="{centre:.0f}" text-anchor="middle" transform="rotate(-90 14 {centre:.0f})">'
        f"{escape(chart.y_label)}</text>"
    )
    if chart.diagonal:
        most = min(frame.most_x, frame.most_y)
        path = f"M{frame.x(0):.1f} {frame.y(0):.1f}L{frame.x(most):.1f} {frame.y(most):.1f}"
        parts.append(f'<path d="{path}" stroke="currentColor" stroke-opacity=".5" stroke-dasharray="2 3"/>')
    return parts


def _colour(chart: Chart, index: int) -> str:
    return chart.lines[index].colour or COLOURS[index % len(COLOURS)]


def _drawn_lines(chart: Chart, frame: _Frame) -> list[str]:
    parts = []
    for index, line in enumerate(chart.lines):
        colour = _colour(chart, index)
        places = [(frame.x(x), frame.y(min(y, frame.most_y))) for x, y in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        sizes = line.sizes or (3.0,) * len(places)
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}" fill-opacity=".8">'
            f"<title>{escape(line.label)}: {of_x:g}, {of_y:.4g}</title></circle>"
            for (x, y), size, (of_x, of_y) in zip(places, sizes, line.points, strict=True)
        ]
    return parts


def _marks(chart: Chart, frame: _Frame) -> list[str]:
    return [
        f'<text x="{frame.x(x):.1f}" y="{frame.y(y) - 8:.1f}" text-anchor="middle">{escape(sign)}</text>'
        for x, y, sign in chart.marks
    ]


def _legend(chart: Chart, frame: _Frame) -> list[str]:
    """At each line's end; where ends meet, below one another."""
    ends = sorted((frame.y(min(line.points[-1][1], frame.most_y)), i) for i, line in enumerate(chart.lines))
    parts, last = [], -math.inf
    for wanted, index in ends:
        last = max(wanted, last + 14)
        x = frame.width - frame.right + 8
        parts.append(
            f'<g fill="{_colour(chart, index)}" font-weight="600"><text x="{x}" y="{last + 4:.1f}">'
            f"{escape(chart.lines[index].label)}</text></g>"
        )
    return parts


def stacked(drawn: Sequence[str], columns: int = 1) -> str:
    """Charts of the usual size in one SVG file, on white, row by row."""
    places = [(WIDTH * (index % columns), HEIGHT * (index // columns)) for index in range(len(drawn))]
    inner = "".join(f'<g transform="translate({x} {y})">{one}</g>' for (x, y), one in zip(places, drawn, strict=True))
    width, height = WIDTH * columns, HEIGHT * -(-len(drawn) // columns)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'color="#1f2328"><rect width="{width}" height="{height}" fill="#ffffff"/>{inner}</svg>\n'
    )
