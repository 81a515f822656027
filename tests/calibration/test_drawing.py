"""What is drawn of a table: the numbers, the signs, and files that a browser reads."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ddtree_sglang.calibration.drawing import charts, page, picture, terminal
from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.cli import main
from ddtree_sglang.viewer.terminal import Ink
from tests.calibration.cases import held
from tests.viewer.browser import Browser, executable

DOTS_OUTSIDE = """
[...document.querySelectorAll(%s)].filter(one => {
  const box = one.getBoundingClientRect();
  return [...one.querySelectorAll('circle')].map(dot => dot.getBoundingClientRect())
    .some(at => at.left < box.left || at.right > box.right || at.top < box.top || at.bottom > box.bottom);
}).length
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(held()))
    return path


def test_the_terminal_shows_times_rates_and_cliffs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "tiny, float32, a processor" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["9", "40", "-"] in lines, "milliseconds"
    assert ["9", "2.00", "-"] in lines, "break-even"
    assert ["5", "80", "-"] in lines, "tokens per second"
    (nine,) = [line for line in shown.splitlines() if line.endswith("▲○")]
    (plain,) = [line for line in shown.splitlines() if line.endswith(" 20 ms")]
    assert nine.count("█") == 2 * plain.count("█")


def test_a_table_without_acceptance_has_no_rates() -> None:
    shown = terminal(CostTable.of(held(nodes=None, drafted=None), "here"), Ink(False))
    assert "tokens per second" not in shown
    assert "to draw with plain decoding" in shown


def test_charts_hold_the_points() -> None:
    times, break_even, rates = charts(CostTable.of(held(), "here"), 0)
    assert times.lines[0].points[3] == pytest.approx((9.0, 40.0))
    assert [(x, sign) for x, _, sign in times.marks] == [(9.0, "▲")]
    assert break_even.lines[1].points[1] == pytest.approx((2.0, 4 / 3))
    assert rates.lines[0].points[2] == pytest.approx((5.0, 80.0))


def test_one_width_of_one_request_is_drawn() -> None:
    table = CostTable.of({"cells": [[1, 1, 0, 0.02]]}, "here")
    ElementTree.fromstring(picture(table, 0))
    assert "20 ms" in terminal(table, Ink(False))


@pytest.mark.skipif(executable() is None, reason="needs Chromium")
def test_the_page_and_the_picture_are_drawn_and_ask_no_net(file: Path, tmp_path: Path) -> None:
    html, drawing = tmp_path / "page.html", tmp_path / "picture.svg"
    assert main(["calibrate", "--show", str(file), "--html", str(html), "--svg", str(drawing)]) == 0
    with Browser(tmp_path / "profile") as browser:
        for path, selector in ((html, "main svg"), (drawing, "svg svg")):
            browser.open(path.as_uri())
            assert browser.run(f"document.querySelectorAll({selector!r}).length") == (5 if path is html else 3)
            assert browser.run(DOTS_OUTSIDE % json.dumps(selector)) == 0
            asked = [
                event["params"]["request"]["url"]
                for event in browser.events
                if event.get("method") == "Network.requestWillBeSent"
            ]
            assert [url for url in asked if not url.startswith(("file:", "about:"))] == []
            assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]


def test_text_of_a_file_is_no_markup() -> None:
    evil = "<script>document.title = 'owned'</script>"
    drawn = page(CostTable.of(held(facts={"model_path": evil, "dtype": evil}), "here"), evil)
    assert "<script" not in drawn
