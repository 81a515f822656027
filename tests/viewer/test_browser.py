"""The page in a real browser: it steps by mouse and keys, tokens are text, nothing is asked of a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.viewer.layout import visible
from ddtree_sglang.viewer.page import page
from ddtree_sglang.viewer.page_data import page_data
from ddtree_sglang.viewer.trace_file import Trace
from ddtree_sglang.viewer.vocabulary import Vocabulary
from tests.viewer.browser import Browser, executable
from tests.viewer.cases import SAMPLE, a_round, write

pytestmark = pytest.mark.skipif(executable() is None, reason="needs Chromium")

EVIL = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        one.size(1200, 1600)
        yield one


def opened(
    browser: Browser, trace_path: Path, folder: Path, decode: Any = None, fragment: str = "", most: int = 500
) -> Browser:
    trace = Trace(trace_path)
    run = trace.runs[-1]
    path = folder / "page.html"
    path.write_text(page(page_data(trace, run, run.rounds[-most:], Vocabulary(decode)), "Rounds"), encoding="utf-8")
    browser.colour_scheme("light")
    browser.open(path.as_uri() + fragment)
    return browser


@pytest.fixture
def sample(browser: Browser, tmp_path: Path) -> Browser:
    """The recorded trace, at its first round."""
    return opened(browser, SAMPLE, tmp_path)


def title(browser: Browser) -> str:
    return str(browser.run("document.getElementById('round-title').textContent"))


def count(browser: Browser, selector: str) -> int:
    return int(browser.run(f"document.querySelectorAll({selector!r}).length"))


def test_keys_and_buttons_step_through_the_rounds(sample: Browser) -> None:
    assert title(sample) == "Round 0"
    steps = [
        ("ArrowRight", False, "Round 1"),
        ("ArrowRight", True, "Round 11"),
        ("ArrowLeft", False, "Round 10"),
        ("End", False, "Round 38"),
        ("ArrowRight", False, "Round 38"),
        ("Home", False, "Round 0"),
        ("ArrowLeft", True, "Round 0"),
    ]
    for key, shift, expected in steps:
        sample.press(key, shift=shift)
        assert title(sample) == expected
    assert sample.run("document.getElementById('back').disabled") is True
    sample.run("document.getElementById('next').click()")
    assert title(sample) == "Round 1"
    assert sample.run("location.hash") == "#1"
    sample.run("const n = document.getElementById('number'); n.value = 20; n.dispatchEvent(new Event('change'))")
    assert (title(sample), sample.run("document.getElementById('slider').value")) == ("Round 20", "20")


def test_everything_is_reached_by_the_tab_key(sample: Browser) -> None:
    reached = []
    for _ in range(12):
        sample.press("Tab")
        reached.append(sample.run("document.activeElement.id || document.activeElement.className || 'other'"))
    wanted = ["next", "last", "slider", "number", "request", "tree"]
    assert [one for one in reached if one in wanted][:6] == wanted


def test_trees_of_a_batch_are_drawn_with_their_accepted_paths(sample: Browser) -> None:
    sample.run("goToRound(5)")
    parts = sample.run("data.rounds[5].parts.map((part) => [part.parents.length, part.path.length])")
    assert len(parts) == count(sample, "article") == 3
    drawn = sample.run(
        "[...document.querySelectorAll('article')].map((one) => [one.querySelectorAll('.tree .box').length, "
        "one.querySelectorAll('.tree .edge.hot').length, one.querySelectorAll('.tree g.beyond').length])"
    )
    # The bonus token is a box too, and the hot edges lead from the root to it.
    assert drawn == [[nodes + 1, path, 13 if place == 1 else 0] for place, (nodes, path) in enumerate(parts)]
    assert "allows itself 4" in sample.run("document.querySelectorAll('article')[1].textContent")
    boxes = sample.run(
        "[...document.querySelectorAll('.tree svg')].map((svg) => [...svg.querySelectorAll('rect.box')]"
        ".map((box) => [box.getAttribute('x'), box.getAttribute('y')].join()))"
    )
    assert all(len(set(places)) == len(places) for places in boxes), "no two boxes in one place"
    # Inside the drawing, so that none is cut off.
    assert sample.run(
        "[...document.querySelectorAll('.tree svg')].every((svg) => [...svg.querySelectorAll('rect.box')].every("
        "(box) => +box.getAttribute('x') + +box.getAttribute('width') <= +svg.getAttribute('width') && "
        "+box.getAttribute('y') + +box.getAttribute('height') <= +svg.getAttribute('height')))"
    )


def test_round_without_a_draft_is_a_root_and_its_next_token(sample: Browser) -> None:
    sample.press("End")
    assert (count(sample, ".tree .box"), count(sample, ".tree .box.bonus"), count(sample, "figure")) == (2, 1, 0)


def test_costs_add_up_and_nodes_have_a_table(sample: Browser) -> None:
    sample.run("goToRound(5)")
    cells = sample.run("[...document.querySelectorAll('#costs tbody tr')].map((row) => +row.cells[1].textContent)")
    total = float(sample.run("document.querySelector('#costs tfoot').rows[0].cells[1].textContent"))
    assert len(cells) == 7
    assert sum(cells) == pytest.approx(total, abs=0.05)
    assert count(sample, "details[open]") == 0
    sample.press("n")
    assert count(sample, "details[open]") == 3
    sample.press("ArrowRight")
    assert count(sample, "details[open]") == 3, "what was opened stays open from round to round"
    assert count(sample, "article:first-of-type tbody tr") == 17


def test_one_request_is_followed_over_its_rounds(sample: Browser) -> None:
    wanted = sample.run("data.requests.findIndex((one) => one.id.startsWith('133fbd7d'))")
    for _ in range(wanted + 1):
        sample.press("r")
    assert sample.run("document.getElementById('of').textContent") == "1 of 8"
    assert title(sample) == "Round 3"
    assert count(sample, "article") == 1
    assert "nodes a request could walk" in sample.run("document.getElementById('course').textContent")
    assert sample.run("Math.max(...pointsOfCourse().map((one) => one.nodes))") == 4
    sample.press("End")
    assert title(sample) == "Round 10"


def test_click_on_the_course_goes_there(sample: Browser) -> None:
    box = sample.run(
        "(() => { const box = document.querySelector('#course svg').getBoundingClientRect(); "
        "return [box.left, box.top, box.width]; })()"
    )
    # The 30th of 39 points lies between the axis' room on the left and the margin on the right.
    x = box[0] + 44 + (box[2] - 52) * 29.5 / 39
    sample.click(x, box[1] + 30)
    assert title(sample) == "Round 29"


def test_tokens_are_text_whatever_they_say(browser: Browser, tmp_path: Path) -> None:
    line = a_round(request_ids=[EVIL], decision=EVIL, **{f"{EVIL}_ms": 1.0})
    opened(browser, write(tmp_path / "t.jsonl", [line]), tmp_path, lambda ids: EVIL)
    assert browser.run("document.title") == "Rounds"
    assert count(browser, "img") == 0
    assert visible(EVIL) in browser.run("document.querySelector('.tree title').textContent")
    assert EVIL in browser.run("document.getElementById('facts').textContent")


def test_page_asks_nothing_of_a_network_and_reports_no_error(sample: Browser) -> None:
    for key in ("ArrowRight", "r", "n", "End"):
        sample.press(key)
    urls = [one["params"]["request"]["url"] for one in sample.events if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file://", "about:"))] == []
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert [one for one in sample.events if one["method"] in wrong] == []
    sample.run("fetch('file:///etc/hostname').catch(() => {})")
    assert [one for one in sample.events if one["method"] == "Log.entryAdded"], "the page's own policy forbids it"


def test_dark_and_light_have_colours_of_their_own_and_text_is_readable(sample: Browser) -> None:
    seen = []
    for scheme in ("light", "dark"):
        sample.colour_scheme(scheme)
        colours = sample.run(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, "
            "getComputedStyle(document.querySelector('.box.accepted, .box.root')).fill, "
            "getComputedStyle(document.querySelector('.tree text')).fill]"
        )
        levels = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in colours]
        assert abs(levels[0] - levels[1]) > 120
        assert abs(levels[2] - levels[3]) > 100
        seen.append(colours)
    assert all(light != dark for light, dark in zip(*seen, strict=True))


def test_narrow_window_needs_no_sideways_scrolling_of_the_page(sample: Browser) -> None:
    sample.size(400, 800)
    try:
        sample.run("goToRound(5)")
        assert sample.run("document.documentElement.scrollWidth") <= 400
    finally:
        sample.size(1200, 1600)


def test_course_is_of_all_rounds_or_of_those_that_are_here(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", (a_round(number) for number in range(3200)))
    opened(browser, path, tmp_path, most=50)
    readout = "document.getElementById('readout').textContent"
    assert count(browser, "#course .shown") == 1
    assert browser.run(readout).startswith("round 3150 to 3152, means: 7.0 nodes, 3.00 tokens of 2.55 expected")
    browser.press("c")
    assert count(browser, "#course .shown") == 0
    assert browser.run(readout).startswith("round 3150: 7 nodes, 3.00 tokens of 2.55 expected, 10.0 ms")
    assert browser.run("document.getElementById('near').checked") is True


def test_very_large_batch_is_stepped_through_at_once_and_drawn_on_demand(browser: Browser, tmp_path: Path) -> None:
    nodes, batch = 256, 8
    each = {
        "token_ids": [[7] * nodes] * batch,
        "parents": [[-1, *(n // 2 for n in range(nodes - 1))]] * batch,
        "path_probs": [[1.0 / (n + 1) for n in range(nodes)]] * batch,
        "node_limits": None,
        "accept_index": [[0, 1]] * batch,
    }
    lines = [a_round(number, batch, num_nodes=nodes, **each) for number in range(3)]
    opened(browser, write(tmp_path / "t.jsonl", lines), tmp_path)
    assert (count(browser, "article"), count(browser, ".tree"), count(browser, "article button")) == (8, 2, 6)
    browser.run("document.querySelector('article button').click()")
    assert (count(browser, ".tree"), count(browser, "article button")) == (3, 5)
    assert browser.run("document.querySelector('.tree').scrollHeight") > 3000, "a large tree scrolls in its own box"
    assert browser.run("document.documentElement.scrollWidth") <= 1200


def test_address_with_a_round_opens_there(browser: Browser, tmp_path: Path) -> None:
    assert title(opened(browser, SAMPLE, tmp_path, fragment="#17")) == "Round 17"
    assert title(opened(browser, SAMPLE, tmp_path, fragment="#9999")) == "Round 38"


def test_what_a_round_took_to_the_next_one_stands_beside_what_was_expected(browser: Browser, tmp_path: Path) -> None:
    told = {"rounds_ago": 1, "ms": 11.5, "expected_ms": 9.0}
    lines = [a_round(0, expected_ms=9.0), a_round(1, measured=told), a_round(2, expected_ms=8.0)]
    opened(browser, write(tmp_path / "t.jsonl", lines), tmp_path)
    facts = "document.getElementById('facts').textContent"
    assert "to the next round11.50 ms measured, 9.00 expected" in browser.run(facts)
    assert "11.5 to the next round" in browser.run("document.getElementById('readout').textContent")
    browser.press("ArrowRight")
    assert "to the next round" not in browser.run(facts)
    browser.press("ArrowRight")
    assert "to the next round8.00 ms expected" in browser.run(facts)


def test_lines_of_an_older_build_and_empty_rounds_are_shown(browser: Browser, tmp_path: Path) -> None:
    lines = [{"batch_size": 1, "total_ms": 3.0}, {"batch_size": 0, "total_ms": 0}, a_round(2, accept_index=None)]
    opened(browser, write(tmp_path / "t.jsonl", lines), tmp_path)
    assert "This line of the trace has no tree" in browser.run("document.querySelector('article').textContent")
    browser.press("ArrowRight")
    assert (title(browser), count(browser, "article")) == ("Round 1", 0)
    browser.press("ArrowRight")
    assert count(browser, ".tree .box") == 6
    assert [one for one in browser.events if one["method"] == "Runtime.exceptionThrown"] == []
