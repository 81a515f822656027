"""A trace on disk: FILE.1, the older half of a bounded one, then FILE. Lines are read when they are asked for.

A trace may hold a million rounds, so what stays in memory is a summary of each and where its line stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ddtree_sglang.exceptions import DDTreeError
from ddtree_sglang.viewer.rounds import Measured, NotARound, Round, parse_round

CUT = "a last line that was cut or is still being written"
MOST_AGO = 2
"""Rounds before a line that its measured time may be of: where scheduling overlaps, the last but one."""


class TraceError(DDTreeError):
    """A file that cannot be read, or holds no round; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept of a round; times in ms. `number` is the server's count, or the place in the file without one.

    `measured` is what its line tells of a round before, and `took_ms` what the line of a later round told of it.
    """

    number: int
    num_nodes: int | None
    batch_size: int
    total_ms: float
    expected_ms: float | None
    measured: Measured | None
    took_ms: float | None
    stages_ms: Mapping[str, float]
    tokens: int | None
    expected_tokens: float | None
    requests: tuple[tuple[str, int | None], ...]
    """Of each request its id and the tokens that it got."""
    node_limits: tuple[int | None, ...]
    decision: str | None
    file: int
    offset: int


@dataclass
class Run:
    """The rounds of one start of a server, oldest first; `server` is what it says of itself, empty if it does not."""

    server: Mapping[str, Any]
    rounds: list[Summary] = field(default_factory=list)


class Trace:
    """The runs of a file, and its lines again on demand. The files stay open, so a server may move them meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        self.skipped: Counter[str] = Counter()
        """Lines that are no rounds, by reason."""
        older = path.with_name(path.name + ".1")
        self.paths = [one for one in (older, path) if one.exists() or one == path]
        try:
            self._files: list[IO[bytes]] = [one.open("rb") for one in self.paths]
            for index in range(len(self._files)):
                self._index(index)
        except OSError as error:
            raise TraceError(f"a trace must be a readable file, got {path}: {error.strerror}.") from error
        if not self.runs:
            raise TraceError(self._no_round())

    def load(self, summary: Summary) -> Round:
        """The whole round.

        Raises:
            TraceError: the file was changed meanwhile, other than by growing.
        """
        file = self._files[summary.file]
        file.seek(summary.offset)
        try:
            return parse_round(file.readline())
        except NotARound as error:
            raise TraceError(f"{self.path} changed while it was read; try again.") from error

    def _index(self, index: int) -> None:
        for offset, line in _lines(self._files[index]):
            try:
                found = parse_round(line)
            except NotARound as error:
                self.skipped[str(error) if line.endswith(b"\n") else CUT] += 1
                continue
            self._add(found, index, offset)

    def _add(self, found: Round, file: int, offset: int) -> None:
        last = self.runs[-1] if self.runs else None
        place = last.rounds[-1].number + 1 if last else 0
        number = place if found.number is None else found.number
        if last is None or number < place or _is_other(last.server, found.server):
            last = Run(found.server or {})
            self.runs.append(last)
        if found.measured is not None:
            _tell(last.rounds, number - found.measured.rounds_ago, found.measured.ms)
        last.rounds.append(_summary(found, number, file, offset))

    def _no_round(self) -> str:
        lines = sum(self.skipped.values())
        if not lines:
            return f"a trace must hold rounds, got {self.path}, which is empty; send its server a request."
        reason, _ = self.skipped.most_common(1)[0]
        return (
            f"a trace must hold rounds, got {self.path}, of whose {lines} lines none is one ({reason}); give the file "
            "of --speculative-ddtree-trace."
        )


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line that is not blank."""
    offset = 0
    for line in file:
        if line.strip():
            yield offset, line
        offset += len(line)


def _is_other(known: Mapping[str, Any], told: Mapping[str, Any] | None) -> bool:
    """Whether a line names another start of a server; a file that was begun anew names the same one again."""
    return told is not None and told != known


def _tell(rounds: list[Summary], number: int, took_ms: float) -> None:
    """What the round of that number took, if it is among the last ones."""
    for place in range(len(rounds) - 1, max(-1, len(rounds) - 1 - MOST_AGO), -1):
        if rounds[place].number == number:
            rounds[place] = replace(rounds[place], took_ms=took_ms)


def _summary(found: Round, number: int, file: int, offset: int) -> Summary:
    return Summary(
        number=number,
        num_nodes=found.num_nodes,
        batch_size=found.batch_size,
        total_ms=found.total_ms,
        expected_ms=found.expected_ms,
        measured=found.measured,
        took_ms=None,
        stages_ms=found.stages_ms,
        tokens=found.tokens,
        expected_tokens=found.expected_tokens,
        requests=tuple((part.request_id, part.commit_len) for part in found.parts),
        node_limits=tuple(part.node_limit for part in found.parts),
        decision=found.decision,
        file=file,
        offset=offset,
    )
