"""What tests and toy replicas share: a journal of who works on what, and files that keep replicas waiting.

A test that strikes in the middle of an answer makes sure with them that the answer is still in its middle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ToyFolder:
    """One application's; replicas get it as an argument."""

    path: Path

    def note(self, **line: Any) -> None:
        """A replica writes into the journal."""
        with self._journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")

    def notes(self) -> list[dict[str, Any]]:
        """The journal so far."""
        return [json.loads(line) for line in self._journal.read_text().splitlines()] if self._journal.exists() else []

    def started(self) -> list[dict[str, Any]]:
        """Its attempts that have begun, in this order."""
        return [note for note in self.notes() if note["what"] == "started"]

    def worker_of_newest(self) -> int:
        """The process that began the newest attempt."""
        return int(self.started()[-1]["pid"])

    @contextmanager
    def held(self, at: int) -> Iterator[None]:
        """Let no answer go beyond its first `at` tokens; only one that has lost a replica goes on."""
        # Whole at once: replicas read it at any time.
        written = self.path / "hold.new"
        written.write_text(str(at))
        written.replace(self._hold)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let answers go on."""
        self._hold.unlink(missing_ok=True)

    def is_held(self, attempt_number: int, index: int) -> bool:
        """True if an attempt must not send this token of its answer yet."""
        try:
            return attempt_number == 0 and index >= int(self._hold.read_text())
        except FileNotFoundError:
            return False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let no new replica come up."""
        self._closed.touch()
        try:
            yield
        finally:
            self._closed.unlink()

    def is_closed(self) -> bool:
        """True if a new replica must not come up yet."""
        return self._closed.exists()

    @property
    def _journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def _hold(self) -> Path:
        return self.path / "hold"

    @property
    def _closed(self) -> Path:
        return self.path / "closed"
