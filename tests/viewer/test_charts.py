"""Charts: where points lie, by hand, and what is refused."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from ddtree_sglang.viewer.charts import BOTTOM, LEFT, TOP, Chart, Line, svg, ticks


def dots(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]


def test_points_lie_where_the_axes_say() -> None:
    chart = Chart("t", "x", "y", (Line("", ((1, 0), (2, 5), (4, 10))),), log_x=True, most_y=10)
    first, middle, last = dots(svg(chart, 400, 300))
    assert first == (LEFT, 300 - BOTTOM)
    assert last[1] == TOP
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1), "2 is half way from 1 to 4 in powers of two"
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)


def test_a_diagonal_has_equal_values_and_text_is_no_markup() -> None:
    chart = Chart("a < b", "<x>", "y&", (Line("<i>", ((0.2, 0.2), (0.6, 0.4))),), diagonal=True, most_y=1)
    root = ElementTree.fromstring(svg(chart, alone=True))
    (diagonal,) = [path for path in root.iter() if path.get("stroke-dasharray") == "2 3"]
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", str(diagonal.get("d"))))
    slope = (y0 - y1) / (x1 - x0)
    assert y1 == TOP
    assert x1 - x0 > 300, "it goes through the whole frame"
    (at, first), *_ = dots(svg(chart, alone=True))
    assert y0 - slope * (at - x0) == pytest.approx(first, abs=0.2), "a point of equal values lies on it"


@pytest.mark.parametrize(
    ("most", "expected"), [(10, [0, 2, 4, 6, 8, 10]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.9, None), (0, [0])]
)
def test_ticks_are_round(most: float, expected: list[float] | None) -> None:
    found = ticks(most)
    assert found[-1] <= most
    if expected is not None:
        assert found == pytest.approx(expected)


def test_no_point_is_refused() -> None:
    with pytest.raises(ValueError, match="must have points"):
        svg(Chart("t", "x", "y", (Line("a", ()),)))
