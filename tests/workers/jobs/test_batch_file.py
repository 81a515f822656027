"""Each input line is answered exactly once, whenever a job dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.jobs.batch_file import AnswerFile, BatchLine, read_batch


def write(path: Path, *bodies: object) -> Path:
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def asking(num_lines: int) -> list[BatchLine]:
    return [BatchLine(index, {"prompt": str(index)}) for index in range(num_lines)]


def test_lines_carry_their_index_and_blank_lines_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"messages": []}\n')
    assert [(line.index, list(line.body)) for line in read_batch(path)] == [(0, ["prompt"]), (2, ["messages"])]


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"prompt": "a", "messages": []}'])
def test_bad_input_is_refused_by_file_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n' * bool(text) + text + "\n")
    with pytest.raises(ValueError, match=r"in\.jsonl(, line 2|)"):
        read_batch(path)


def test_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be readable"):
        read_batch(tmp_path / "none.jsonl")


@given(cut=st.integers(0, 200), answered=st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_job_killed_at_any_byte_answers_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int, answered: int
) -> None:
    path = tmp_path_factory.mktemp("out") / "out.jsonl"
    first = AnswerFile(path, asking(6))
    for index in range(answered):
        first.write(index, {"text": "ü" * index})
    first.close()
    # A kill leaves any prefix of what was written.
    path.write_bytes(path.read_bytes()[:cut])

    again = AnswerFile(path, asking(6))
    for index in set(range(6)) - again.done:
        again.write(index, {"text": "x"})
    again.close()
    assert sorted(json.loads(line)["index"] for line in path.read_text().splitlines()) == list(range(6))


def test_second_answer_to_a_line_is_refused(tmp_path: Path) -> None:
    answers = AnswerFile(tmp_path / "out.jsonl", asking(1))
    answers.write(0, {})
    with pytest.raises(ValueError, match="has an answer already"):
        answers.write(0, {})


def test_second_job_on_the_same_file_is_refused(tmp_path: Path) -> None:
    first = AnswerFile(tmp_path / "out.jsonl", asking(1))
    with pytest.raises(ValueError, match="one job at a time"):
        AnswerFile(tmp_path / "out.jsonl", asking(1))
    first.close()
    AnswerFile(tmp_path / "out.jsonl", asking(1)).close()


def test_answers_of_another_batch_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", {"index": 7, "input": "x"})
    with pytest.raises(ValueError, match=r"\[8\]; name another output"):
        AnswerFile(path, asking(3))


def test_answers_to_lines_that_read_otherwise_now_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = AnswerFile(path, asking(3))
    first.write(1, {})
    first.close()
    reordered = [BatchLine(0, {"prompt": "1"}), BatchLine(1, {"prompt": "0"}), BatchLine(2, {"prompt": "2"})]
    with pytest.raises(ValueError, match=r"that have changed: \[2\]"):
        AnswerFile(path, reordered)
    AnswerFile(path, asking(3)).close()


@pytest.mark.parametrize("line", ["{", "[1]", '{"index": 0}', '{"index": "a", "input": "b"}'])
def test_file_that_is_no_answer_file_is_refused_by_its_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"out\.jsonl, line 1 must be an answer"):
        AnswerFile(path, asking(1))


def test_all_lines_have_answers_only_once_each_has(tmp_path: Path) -> None:
    lines = [line for line in asking(3) if line.index != 1]
    answers = AnswerFile(tmp_path / "out.jsonl", lines)
    answers.write(0, {})
    assert not answers.is_complete
    answers.write(2, {})
    assert answers.is_complete


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_separators_within_a_string_do_not_end_the_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "in.jsonl"
    body = {"prompt": f"a{separator}b"}
    path.write_text("\ufeff" + json.dumps(body, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert [line.body for line in read_batch(path)] == [body]


def test_bytes_that_are_no_text_are_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2 must be a JSON object in UTF-8"):
        read_batch(path)
