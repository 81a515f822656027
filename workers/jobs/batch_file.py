"""A batch of prompts in a JSONL file and its answers in another: each input line is answered exactly once.

An answer is one line, written in one call and flushed to disk before it counts. A job that was killed in the middle of
a line drops that line when it starts again, reads which inputs have answers, and goes on with the others. Answers stand
in the order in which they were ready. Each carries the index of its input line and a digest of it, so that a file of
answers is never continued with other questions.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BatchLine:
    """One input line: its index in the file, from 0, and its JSON object."""

    index: int
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hash of the line's content; spaces and the order of fields do not change it."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()[:16]


def read_batch(path: Path) -> list[BatchLine]:
    """Read and check every line.

    Raises:
        ValueError: the file is missing or empty, or a line is not a JSON object with "prompt" or "messages"; the
            message names the line.
    """
    try:
        # Split at newlines alone: str.splitlines also splits at separators that may stand inside a JSON string.
        texts = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"the input file must be readable, got {error}.") from error
    lines = [_parse(path, index, text) for index, text in enumerate(texts) if text.strip()]
    if not lines:
        raise ValueError(f"the input file must hold a request per line, {path} holds none.")
    return lines


def _parse(path: Path, index: int, text: bytes) -> BatchLine:
    try:
        body = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}, line {index + 1} must be a JSON object in UTF-8, got {error}.") from error
    if not isinstance(body, dict) or ("prompt" in body) == ("messages" in body):
        raise ValueError(f'{path}, line {index + 1} must be an object with either "prompt" or "messages".')
    return BatchLine(index, body)


class AnswerFile:
    """The output file; one writer at a time.

    Args:
        path: created, with its folder, if it does not exist.
        lines: the input's.

    Raises:
        ValueError: another job holds the file, a line of it is not an answer, or answers other lines than the input's.
    """

    def __init__(self, path: Path, lines: Sequence[BatchLine]) -> None:
        self._path = path
        self._digests = {line.index: line.digest for line in lines}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._lock()
        self._drop_torn_line()
        held = dict(self._held())
        self.done = set(held)
        others = sorted(index for index, digest in held.items() if self._digests.get(index) != digest)
        if others:
            numbers = [index + 1 for index in others[:3]]
            raise ValueError(
                f"{path} holds answers to lines that the input does not have, or that have changed: {numbers}; "
                "name another output."
            )

    @property
    def is_complete(self) -> bool:
        """Whether every line of the input has its answer."""
        return self.done == set(self._digests)

    def write(self, index: int, answer: dict[str, Any]) -> None:
        """Append one answer; it counts once this returns.

        Raises:
            ValueError: the line has an answer already.
            OSError: the disk is full; the torn line is dropped at the next start.
        """
        if index in self.done:
            raise ValueError(f"line {index} has an answer already.")
        line = {"index": index, "input": self._digests[index], **answer}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(index)

    def close(self) -> None:
        """Close the file, which lets another job write it."""
        self._file.close()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(
                f"only one job at a time may write {self._path}, and one does now; wait for it, or name another output."
            ) from error

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        held = self._file.read()
        whole = held.rfind(b"\n") + 1
        if whole < len(held):
            self._file.truncate(whole)

    def _held(self) -> Iterator[tuple[int, str]]:
        """Index and digest of each answer's line."""
        self._file.seek(0)
        for number, text in enumerate(self._file, 1):
            try:
                line: Mapping[str, Any] = json.loads(text)
                yield int(line["index"]), str(line["input"])
            except (ValueError, KeyError, TypeError) as error:
                self._file.close()
                raise ValueError(
                    f"{self._path}, line {number} must be an answer of a job, got {type(error).__name__}: {error}; "
                    "name another output."
                ) from error
