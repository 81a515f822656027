"""`ddtree trace FILE` in a terminal: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddtree_sglang.cli import main
from ddtree_sglang.viewer.rounds import parse_round
from ddtree_sglang.viewer.terminal import Ink, picture
from ddtree_sglang.viewer.vocabulary import Vocabulary
from tests.viewer.cases import SAMPLE, a_round, write


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["trace", *arguments]) == 0
    return capsys.readouterr().out


def test_overview_of_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, str(SAMPLE))
    assert f"{SAMPLE}: 39 rounds, 0 to 38" in out
    assert "SmolLM2-135M-Instruct, float32, ddtree_cpu, N 17, policy fixed, since 2026-11-27" in out
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    parts = sum(line["batch_size"] for line in lines)
    tokens = sum(sum(line["commit_lens"]) for line in lines)
    assert f"accept length {tokens / parts:.2f} tokens a request and round; expected" in out
    # The request with a budget of its own.
    assert [line.split()[1:] for line in out.splitlines() if line.startswith("133fbd7d")] == [["8", "19", "2.38", "4"]]
    # The last round is drawn: one request, one node, no draft.
    assert "round 38: 1 request of 1 node\n" in out
    assert "is not on this machine, so tokens are numbers" in out


def test_round_is_drawn_as_a_tree_with_its_path_and_its_costs() -> None:
    found = parse_round(json.dumps(a_round(node_limits=[5], decision="a tree of 7", expected_ms=9.0)))
    words = {100: "root", 101: " the", 102: "cat", 103: "a\n", 104: "dog", 105: "sat", 9: "!"}
    drawn = picture(12, found, Vocabulary(lambda ids: "".join(words[one] for one in ids)), Ink(False), 9.7)
    assert drawn.splitlines() == [
        "round 12: 1 request of 7 nodes",
        "  decision: a tree of 7",
        "  10.00 ms in stages, 9.00 expected and 9.70 measured to the next round, 1.429 a node, 3.33 an emitted token",
        "  draft      4.00 ms    0.571 a node  ████████████████",
        "  verify     6.00 ms    0.857 a node  ████████████████████████",
        "",
        "request-0  10 tokens before, allows itself 5 nodes, expected 2.50, emitted 3",
        "  root        root",
        "  ├─·the       60.0% ✓ accepted",
        "  │ ├─cat      50.0%",
        "  │ │ └─sat     5.0% beyond its budget",
        "  │ └─dog      10.0% ✓ accepted",
        "  └─a⏎         30.0%",
        "  emitted: ·the dog !",
    ]


def test_colours_do_not_move_columns() -> None:
    found = parse_round(json.dumps(a_round()))
    plain, coloured = (picture(0, found, Vocabulary(None), Ink(has)) for has in (False, True))
    assert coloured != plain
    for code in ("\x1b[32;1m", "\x1b[34;1m", "\x1b[2m", "\x1b[1m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


def test_control_characters_of_a_trace_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\r\x1b[2J"
    line = a_round(request_ids=[evil], decision=evil, server={"model": evil, "dtype": evil}, **{f"{evil}_ms": 1.0})
    out = printed(capsys, str(write(tmp_path / "t.jsonl", [line])))
    assert [char for char in out if ord(char) < 32 and char != "\n"] == []
    assert "\\u{1b}]0;title" in out


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--rounds", "5"], ["round 5:"]),
        (["--rounds", "5:6"], ["round 5:", "round 6:"]),
        (["--rounds", "37:"], ["round 37:", "round 38:"]),
        (["--rounds", ":30", "--request", "133fbd"], ["round 3:", "round 10:"]),
    ],
)
def test_chosen_rounds_are_drawn_alone(
    arguments: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, str(SAMPLE), *arguments)
    drawn = [line for line in out.splitlines() if line.startswith("round ")]
    assert all(any(line.startswith(one) for line in drawn) for one in shown)
    assert "accept length" not in out


def test_many_rounds_are_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.jsonl", [a_round(number, decision="tree" if number else None) for number in range(40)])
    lines = printed(capsys, str(path), "--rounds", "0:").splitlines()
    assert lines[0].split() == ["round", "requests", "nodes", "ms", "tokens", "expected", "decision"]
    assert lines[1].split() == ["0", "1", "7", "10.0", "3", "2.55"]
    assert lines[40].split() == ["39", "1", "7", "10.0", "3", "2.55", "tree"]


def test_requests_of_a_long_trace_are_the_last_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [a_round(number, request_ids=[f"r{number}"]) for number in range(50)]
    out = printed(capsys, str(write(tmp_path / "t.jsonl", lines)))
    assert "the last 20 of 50 requests" in out
    assert ("\nr30 " in out, "\nr29 " in out) == (True, False)


def test_what_was_decided_and_expected_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [("tree", 8.0), ("plain", 12.0), ("tree", 20.0), (None, None), ("cold", 0.0)]
    lines = [a_round(place, decision=name, expected_ms=spent) for place, (name, spent) in enumerate(told)]
    out = printed(capsys, str(write(tmp_path / "t.jsonl", lines)))
    assert "\nstages of rounds took 75% of the time that was expected from one round to the next\n" in out
    assert "\ndecided: tree 2, plain 1, cold 1\n" in out
    assert "decided" not in printed(capsys, str(SAMPLE))


def test_what_rounds_took_stands_beside_what_was_expected_of_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [None, (9.0, 10.0), (30.0, 20.0), (7.0, 0.0)]
    lines = [
        a_round(place, measured=one and {"rounds_ago": 1, "ms": one[0], "expected_ms": one[1]})
        for place, one in enumerate(told)
    ]
    out = printed(capsys, str(write(tmp_path / "t.jsonl", lines)))
    # 39 of 30 ms; of the third round nothing was expected.
    assert "\nfrom one round to the next it took 130% of the time that was expected\n" in out
    drawn = printed(capsys, str(tmp_path / "t.jsonl"), "--rounds", "1")
    assert "10.00 ms in stages, 30.00 measured to the next round" in drawn
    assert "it took" not in printed(capsys, str(SAMPLE))


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = {"model": "m", "trace_every": 4}
    path = write(tmp_path / "t.jsonl", [a_round(0), a_round(0, server=server), a_round(4), '{"cut'])
    out = printed(capsys, str(path))
    assert "run 2 of 2: the file has other starts of a server, which --run shows" in out
    assert "one of 4 rounds was traced" in out
    assert "left out: 1 x a last line that was cut or is still being written" in out
    assert "1 rounds, 0 to 0" in printed(capsys, str(path), "--run", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "9:3"], "--rounds must be FIRST:LAST in ascending order, got '9:3'"),
        (["--rounds", "last"], "--rounds must be FIRST:LAST"),
        (["--rounds", "100:"], "--rounds 100: must name rounds of the trace, which has rounds 0 to 38; none fits"),
        (["--request", "zzz"], "--request zzz must name rounds"),
        (["--run", "2"], "--run must be a number from 1 to 1, got 2"),
        (["--max-rounds", "0"], "--max-rounds must be 1 or more, got 0"),
        (["--html", "/dev/null/page.html"], "File exists"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(SAMPLE), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
