"""A batch of prompts in a JSONL file and its answers in another: each input line is answered exactly once.

An answer is one line, written in one call and flushed to disk before it counts. A job that was killed in the middle of
a line drops that line when it starts again, reads which inputs have answers, and goes on with the others. Answers come
in the order in which they were ready and carry the index of their input line. No Ray in here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BatchLine:
    """One input line: its index in the file, from 0, and its JSON object."""

    index: int
    body: dict[str, Any]


def read_batch(path: Path) -> list[BatchLine]:
    """Read and check every line.

    Raises:
        ValueError: the file is missing or empty, or a line is no JSON object with "prompt" or "messages"; names it.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the input file must be readable, got {error}.") from error
    lines = [_parse(path, index, text) for index, text in enumerate(texts) if text.strip()]
    if not lines:
        raise ValueError(f"the input file must hold a request per line, {path} holds none.")
    return lines


def _parse(path: Path, index: int, text: str) -> BatchLine:
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {index + 1} must be a JSON object, got {error}.") from error
    if not isinstance(body, dict) or ("prompt" in body) == ("messages" in body):
        raise ValueError(f'{path}, line {index + 1} must be an object with either "prompt" or "messages".')
    return BatchLine(index, body)


class AnswerFile:
    """The output file; one writer at a time.

    Raises:
        ValueError: another job holds the file, or it holds answers to a line that the input does not have.
    """

    def __init__(self, path: Path, num_inputs: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._lock()
        self._drop_torn_line()
        self.done = set(self._indices())
        beyond = sorted(index for index in self.done if not 0 <= index < num_inputs)
        if beyond:
            raise ValueError(f"{path} holds answers to lines {beyond[:3]} that the input lacks; name another output.")

    def write(self, index: int, answer: dict[str, Any]) -> None:
        """Append one answer; it counts once this returns.

        Raises:
            ValueError: the line has an answer already.
            OSError: the disk is full; the torn line is dropped at the next start.
        """
        if index in self.done:
            raise ValueError(f"line {index} has an answer already.")
        self._file.write(json.dumps({"index": index, **answer}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(index)

    def close(self) -> None:
        """Let another job have the file."""
        self._file.close()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(f"one job at a time may write {self._path}, and one does; wait for it.") from error

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        held = self._file.read()
        whole = held.rfind(b"\n") + 1
        if whole < len(held):
            self._file.truncate(whole)

    def _indices(self) -> Iterator[int]:
        self._file.seek(0)
        for line in self._file:
            yield int(json.loads(line)["index"])
