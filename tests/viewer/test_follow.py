"""A trace that grows: each new round is a line, also across the move to a new file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ddtree_sglang.cli import main
from ddtree_sglang.engine.debug.trace import RoundTrace
from ddtree_sglang.viewer.follow import follow
from tests.viewer.cases import a_round, write


def followed(path: Path, *steps: Callable[[], object], request: str | None = None) -> list[str]:
    """What is printed while these steps happen, one at each look at the file."""
    left, out = list(steps), io.StringIO()

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    with pytest.raises(KeyboardInterrupt):
        follow(path, out, request=request, sleep=sleep)
    return out.getvalue().splitlines()


def appending(path: Path, text: str) -> Callable[[], object]:
    def step() -> None:
        with path.open("a") as file:
            file.write(text)

    return step


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines]


def test_rounds_that_come_are_printed_and_those_that_were_there_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [a_round(0), a_round(1)])
    text = json.dumps(a_round(2, decision="tree of 7")) + "\n"
    # In pieces, with a line of something else between.
    printed = followed(path, appending(path, text[:70]), appending(path, text[70:] + "no round\n" + text))
    assert printed == ["round      2    1 requests  N   7      10.0 ms     3 tokens of   2.55 expected  tree of 7"] * 2


def test_one_requests_rounds_are_printed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [])
    text = "".join(json.dumps(a_round(number, request_ids=[f"id-{number % 2}"])) + "\n" for number in range(6))
    assert numbers(followed(path, appending(path, text), request="id-1")) == [1, 3, 5]


def test_a_file_that_makes_room_is_followed_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = RoundTrace(str(path), "cpu", {"model": "m"}, max_bytes=4000)

    def one_round() -> None:
        writer.end_round(lambda: {"batch_size": 1, "num_nodes": 1, "commit_lens": [1]})

    assert numbers(followed(path, *[one_round] * 40)) == list(range(40))
    assert (tmp_path / "t.jsonl.1").exists()


def test_a_file_that_is_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [a_round(0), a_round(1)])
    assert numbers(followed(path, lambda: write(path, [a_round(7)]))) == [7]


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path / "none"), "--follow"]) == 1
    assert capsys.readouterr().err.startswith("error: a trace must be a readable file, got")


def test_ctrl_c_ends_it_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddtree_sglang.viewer.commands.follow", interrupted)
    assert main(["trace", str(write(tmp_path / "t.jsonl", [])), "--follow"]) == 0
