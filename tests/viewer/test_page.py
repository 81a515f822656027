"""The page as a file: complete, closed to the network, and true to the trace. `test_browser` opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.cli import main
from ddtree_sglang.viewer.layout import node_rows
from ddtree_sglang.viewer.page import page
from ddtree_sglang.viewer.page_data import MOST_POINTS, page_data
from ddtree_sglang.viewer.trace_file import Trace
from ddtree_sglang.viewer.vocabulary import Vocabulary
from tests.viewer.cases import PARENTS, SAMPLE, a_round, write

EVIL = '</script><!--<script><img src=x onerror="alert(1)">{{data}}&amp;'


class Elements(HTMLParser):
    """The elements of a page with their attributes and text, as a browser would cut them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self._is_open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._is_open = True

    def handle_endtag(self, tag: str) -> None:
        self._is_open = False

    def handle_data(self, data: str) -> None:
        if self._is_open:
            self.texts[len(self.found) - 1] = self.texts.get(len(self.found) - 1, "") + data

    def text_of(self, tag: str, **attributes: str) -> str:
        (place,) = [n for n, (name, has) in enumerate(self.found) if name == tag and attributes.items() <= has.items()]
        return self.texts[place]


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(text).text_of("script", id="data"))
    return found


def made(path: Path, decode: Any = None, most: int = 500) -> dict[str, Any]:
    trace = Trace(path)
    run = trace.runs[-1]
    return page_data(trace, run, run.rounds[-most:], Vocabulary(decode))


def test_command_writes_one_file_with_all_rounds_of_the_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["trace", str(SAMPLE), "--html", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    data = data_of(out.read_text(encoding="utf-8"))
    assert [one["round"] for one in data["rounds"]] == list(range(39))
    assert sorted(one["rounds"] for one in data["requests"]) == [3, 8, 9, 20, 27]
    assert out.stat().st_size < 150_000


def test_round_on_the_page_is_the_traces(tmp_path: Path) -> None:
    told = {"rounds_ago": 1, "ms": 11.5, "expected_ms": 9.0}
    lines = [a_round(0, batch_size=2, decision="why", expected_ms=9.0), a_round(1, measured=told)]
    data = made(write(tmp_path / "t.jsonl", lines))
    one = data["rounds"][0]
    assert (one["decision"], one["expected_ms"], one["total"], one["tokens"]) == ("why", 9.0, 10.0, 6)
    assert [each["took_ms"] for each in data["rounds"]] == [11.5, None]
    assert one["stages"] == {"draft": 4.0, "verify": 6.0}
    part = one["parts"][1]
    assert [data["tokens"][token] for token in part["tokens"]] == [f"#{token}" for token in range(100, 106)]
    assert (list(part["parents"]), list(part["path"])) == (PARENTS[:-1], [0, 1, 4])
    # The bonus token hangs below the last accepted node.
    assert part["rows"] == node_rows([*PARENTS[:-1], 4])
    assert [data["tokens"][token] for token in part["emitted"]] == ["#101", "#104", "#9"]


def test_text_before_a_round_is_what_the_rounds_before_emitted(tmp_path: Path) -> None:
    # Tokens committed before: 10, 13, 16, then a round that was not traced, 22, 25.
    lines = [a_round(number) for number in (0, 1, 2, 4, 5)]
    data = made(write(tmp_path / "t.jsonl", lines), lambda ids: "".join(f"<{one}>" for one in ids))
    texts = [one["parts"][0]["before"] for one in data["rounds"]]
    # The last token before a round is its root, which is shown with the tree.
    assert texts == ["…", "…<101><104>", "…<101><104><9><101><104>", "…", "…<101><104>"]


def test_tokens_and_names_of_a_trace_are_text_and_nothing_else(tmp_path: Path) -> None:
    line = a_round(request_ids=[EVIL], decision=EVIL, server={"model": EVIL}, **{f"{EVIL}_ms": 1.0})
    data = made(write(tmp_path / "t.jsonl", [line]), lambda ids: EVIL)
    text = page(data, EVIL)
    elements = Elements(text)
    assert [name for name, _ in elements.found].count("script") == 2
    assert [name for name, _ in elements.found if name in ("img", "iframe", "object", "link")] == []
    assert data_of(text) == json.loads(json.dumps(data))
    assert elements.text_of("h1") == EVIL
    assert "<!--" not in text.split('id="data">')[1].split("</script>")[0]


def test_page_asks_no_network_and_runs_its_own_script_alone() -> None:
    text = page(made(SAMPLE), "title")
    assert [url for url in re.findall(r"\b\w+://[^\s\"']*", text) if url != "http://www.w3.org/2000/svg"] == []
    assert re.findall(r"url\(|@import|\bsrc=|\bhref=|fetch\(|XMLHttpRequest|innerHTML|\bimport\b", text) == []
    elements = Elements(text)
    (policy,) = [has["content"] or "" for name, has in elements.found if name == "meta" and "http-equiv" in has]
    assert policy.startswith("default-src 'none'; ")
    script = [elements.texts[n] for n, (name, has) in enumerate(elements.found) if name == "script" and not has]
    for part, content in (("script", script[0]), ("style", elements.text_of("style"))):
        wanted = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{wanted}'" in policy


def test_long_trace_keeps_its_newest_rounds_and_a_thinned_course_and_says_so(tmp_path: Path) -> None:
    count = 2 * MOST_POINTS + 10
    path = write(tmp_path / "t.jsonl", (a_round(number, commit_lens=[1 + number % 2]) for number in range(count)))
    data = made(path, most=200)
    assert [data["rounds"][0]["round"], len(data["rounds"])] == [count - 200, 200]
    assert data["course"]["step"] == 3
    assert len(data["course"]["points"]) == -(-count // 3) <= MOST_POINTS
    assert data["course"]["points"][1] == {
        "round": 3,
        "last": 5,
        "batch": 1.0,
        "nodes": 7.0,
        "ms": 10.0,
        "expected_ms": None,
        "took_ms": None,
        "tokens": 1.667,
        "expected": 2.55,
    }
    notes = " ".join(data["notes"])
    assert f"200 of {count} rounds are here, {count - 200} to {count - 1}; --rounds" in notes
    assert "a point for each 3" in notes
    assert len(page(data, "t")) < 400_000


def test_lines_without_trees_and_without_a_server_make_a_page(tmp_path: Path) -> None:
    data = made(write(tmp_path / "t.jsonl", [{"batch_size": 1, "total_ms": 3.0}, {"batch_size": 0, "total_ms": 0}]))
    part = data["rounds"][0]["parts"][0]
    assert (part["parents"], part["rows"], part["expected"], part["before"]) == ((), [], None, "")
    assert data["server"] == "The trace does not name its server."
    assert data_of(page(data, "t"))["rounds"][1]["parts"] == []


def test_lone_surrogates_and_separators_survive(tmp_path: Path) -> None:
    data = made(write(tmp_path / "t.jsonl", [a_round()]), lambda ids: "\ud800\u2028")
    assert data_of(page(data, "t"))["tokens"][0] == "\\u{d800}\\u{2028}"
    page(data, "t").encode("utf-8")
