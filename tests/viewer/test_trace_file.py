"""A trace on disk: whole, cut, foreign, in two files, growing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddtree_sglang.engine.debug.trace import RoundTrace
from ddtree_sglang.viewer.trace_file import CUT, Trace, TraceError
from tests.viewer.cases import SAMPLE, a_round, write


def numbers(trace: Trace, run: int = -1) -> list[int]:
    return [one.number for one in trace.runs[run].rounds]


def test_sample_is_one_run_with_its_server_and_its_rounds_are_read_again() -> None:
    trace = Trace(SAMPLE)
    assert numbers(trace) == list(range(39))
    assert trace.runs[0].server["model"] == "SmolLM2-135M-Instruct"
    assert trace.skipped == {}
    for one in trace.runs[0].rounds:
        assert trace.load(one).total_ms == one.total_ms


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_file_is_told_as_such(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="which is empty; send its server a request"):
        Trace(write(tmp_path / "t.jsonl", [text]))


def test_foreign_file_is_told_from_a_trace(tmp_path: Path) -> None:
    lines = [json.dumps({"message": "hello"}) + "\n"] * 3 + ["no json\n"]
    with pytest.raises(TraceError, match=r"of whose 4 lines none is one \(no round of a trace\); give the file"):
        Trace(write(tmp_path / "t.jsonl", lines))


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="must be a readable file"):
        Trace(tmp_path / name)


def test_cut_last_line_and_lines_of_others_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [a_round(0), "no json\n", {"level": "info"}, a_round(1), {**a_round(2), "parents": [[5]]}]
    trace = Trace(write(tmp_path / "t.jsonl", [*lines, "\n", json.dumps(a_round(3))[:100]]))
    assert numbers(trace) == [0, 1]
    assert trace.skipped == {"no JSON": 1, "no round of a trace": 1, "a damaged round": 1, CUT: 1}


def test_whole_last_line_without_a_newline_counts(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path / "t.jsonl", [json.dumps(a_round(0))]))
    assert (numbers(trace), dict(trace.skipped)) == ([0], {})


def test_bytes_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xff\xfe\x00{\n" + json.dumps(a_round(4)).encode() + b"\n")
    assert numbers(Trace(path)) == [4]


def test_file_that_grows_while_it_is_read_gives_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [a_round(0), a_round(1)])
    trace = Trace(path)
    with path.open("a") as file:
        file.write(json.dumps(a_round(2)) + "\n")
    assert numbers(trace) == [0, 1]
    assert trace.load(trace.runs[0].rounds[1]).number == 1


def test_file_that_is_overwritten_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [a_round(0), a_round(1)])
    trace = Trace(path)
    write(path, ["something else\n"])
    with pytest.raises(TraceError, match="changed while it was read"):
        trace.load(trace.runs[0].rounds[1])


def test_starts_of_a_server_in_one_file_are_runs_of_their_own(tmp_path: Path) -> None:
    first, second = {"model": "a", "started": "1"}, {"model": "a", "started": "2"}
    lines = [a_round(0, server=first), a_round(1), a_round(0), a_round(7, server=second), a_round(8)]
    trace = Trace(write(tmp_path / "t.jsonl", lines))
    assert [[one.number for one in run.rounds] for run in trace.runs] == [[0, 1], [0], [7, 8]]
    assert [run.server.get("started") for run in trace.runs] == ["1", None, "2"]


def told(ago: int, ms: float, expected_ms: float = 10.0) -> dict[str, float]:
    return {"rounds_ago": ago, "ms": ms, "expected_ms": expected_ms}


def test_a_rounds_time_is_in_the_line_of_a_later_one(tmp_path: Path) -> None:
    of_one = [a_round(0), a_round(1, measured=told(1, 12.0)), a_round(2, measured=told(1, 13.0)), a_round(3)]
    overlapped = [a_round(0), a_round(1), a_round(2, measured=told(2, 12.0)), a_round(3, measured=told(2, 13.0))]
    sampled = [a_round(0), a_round(8, measured=told(1, 12.0)), a_round(16, measured=told(1, 13.0))]
    restarted = [a_round(0), a_round(0, measured=told(1, 12.0))]
    for lines, took in (
        (of_one, [12.0, 13.0, None, None]),
        (overlapped, [12.0, 13.0, None, None]),
        (sampled, [None, None, None]),
        (restarted, [None]),
    ):
        run = Trace(write(tmp_path / "t.jsonl", lines)).runs[-1]
        assert [one.took_ms for one in run.rounds] == took


def test_lines_without_a_number_are_counted(tmp_path: Path) -> None:
    assert numbers(Trace(write(tmp_path / "t.jsonl", [a_round(round=None)] * 3))) == [0, 1, 2]


def test_both_files_of_a_bounded_trace_are_one_run_also_while_the_server_moves_them(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = RoundTrace(str(path), "cpu", {"model": "m", "started": "now"}, max_bytes=6000)

    def rounds(count: int) -> None:
        for _ in range(count):
            writer.end_round(lambda: {"batch_size": 1, "num_nodes": 1, "commit_lens": [1]})

    rounds(17)
    trace = Trace(path)
    assert len(trace.paths) == 2
    assert len(trace.runs) == 1
    assert numbers(trace) == list(range(17))[-len(numbers(trace)) :]
    rounds(17)
    assert all(trace.load(one).number == one.number for one in trace.runs[0].rounds)
