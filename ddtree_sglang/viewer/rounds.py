"""One line of a trace as values that were looked at: whatever the file holds, what comes out of here can be drawn.

`ddtree_sglang/engine/debug/trace.py` writes the lines and says what they hold. Lines of an older build lack fields;
what a line lacks is None here, or empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BATCH = 2**16
"""More than any server runs at once; a damaged number asks for no memory."""
MAX_VALUE = 2**53
"""Up to here a page's script has whole numbers as they are."""


class NotARound(ValueError):
    """A line that is no round of a trace; the message says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One request's part in a round.

    `token_ids`, `parents` and `path_probs` have a value per node, padding left out; they are empty where the line has
    no tree. `path` are the accepted nodes, the root first; `emitted_ids` the round's tokens, the bonus token last.
    """

    request_id: str
    prefix_len: int | None
    node_limit: int | None
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    path_probs: tuple[float, ...]
    path: tuple[int, ...]
    emitted_ids: tuple[int, ...]
    commit_len: int | None
    told_tokens: float | None

    @property
    def walkable(self) -> int:
        """Nodes that the walk could enter: the tree's, or the first of them that the request allows itself."""
        return len(self.parents) if self.node_limit is None else min(self.node_limit, len(self.parents))

    @property
    def expected_tokens(self) -> float | None:
        """Tokens that the round was expected to emit, bonus included; None without a tree.

        What the line tells, else the sum of the path probabilities: by Proposition 1 of the paper that is the mean of
        the accepted nodes, the root counted for the bonus token, if the drafter's probabilities are true.
        """
        if self.told_tokens is not None:
            return self.told_tokens
        return sum(self.path_probs[: self.walkable]) if self.path_probs else None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a line tells of a round before its own: how many rounds ago, its time from beginning to beginning in ms, and
    what was expected of it, None where nothing was.
    """

    rounds_ago: int
    ms: float
    expected_ms: float | None


@dataclass(frozen=True, slots=True)
class Round:
    """One round; times in ms. `decision`, `expected_ms` and `told_tokens` are what the policy says of its choice, None
    where it says nothing; `measured` is of a round before.
    """

    number: int | None
    num_nodes: int | None
    batch_size: int
    stages_ms: Mapping[str, float]
    total_ms: float
    parts: tuple[Part, ...]
    free_slots: int | None
    decision: str | None
    expected_ms: float | None
    told_tokens: float | None
    measured: Measured | None
    server: Mapping[str, Any] | None

    @property
    def tokens(self) -> int | None:
        """Tokens that the round emitted, all requests together; None where the line does not say."""
        return _sum([part.commit_len for part in self.parts])

    @property
    def expected_tokens(self) -> float | None:
        """The same, as expected: what the policy told of the batch, else what its parts say."""
        return self.told_tokens if self.told_tokens is not None else _sum([one.expected_tokens for one in self.parts])


def parse_round(text: str | bytes) -> Round:
    """The round that a line holds.

    Raises:
        NotARound: it is no JSON object, not a trace's, or its parts contradict one another.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotARound("no JSON") from error
    if not isinstance(line, dict) or not ({"batch_size", "total_ms"} <= set(line)):
        raise NotARound("no round of a trace")
    try:
        return _round(line)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise NotARound("a damaged round") from error


def _round(line: Mapping[str, Any]) -> Round:
    batch_size = _count(line["batch_size"])
    if batch_size > MAX_BATCH:
        raise ValueError(f"a round has at most {MAX_BATCH} requests, got {batch_size}")
    stages = {key.removesuffix("_ms"): _number(value) for key, value in line.items() if key.endswith("_ms")}
    total_ms, expected_ms = stages.pop("total"), stages.pop("expected", None)
    told = line.get("expected_tokens")
    decision, server = line.get("decision"), line.get("server")
    return Round(
        number=_optional(_count, line.get("round")),
        num_nodes=_optional(_count, line.get("num_nodes")),
        batch_size=batch_size,
        stages_ms=stages,
        total_ms=total_ms,
        parts=tuple(_part(line, index, batch_size) for index in range(batch_size)),
        free_slots=_optional(_count, line.get("free_slots")),
        decision=None if decision is None else str(decision),
        # 0 is what a policy says that does not know: a round takes time, and emits a token for each request.
        expected_ms=expected_ms or None,
        told_tokens=None if isinstance(told, list) else _optional(_number, told) or None,
        measured=_optional(_measured, line.get("measured")),
        server=server if isinstance(server, dict) else None,
    )


def _measured(told: Mapping[str, Any]) -> Measured:
    return Measured(_count(told["rounds_ago"]), _number(told["ms"]), _number(told["expected_ms"]) or None)


def _part(line: Mapping[str, Any], index: int, batch_size: int) -> Part:
    def of(name: str) -> Any:
        values = line.get(name)
        if values is None:
            return None
        if len(values) != batch_size:
            raise ValueError(f"{name} must have {batch_size} requests, got {len(values)}")
        return values[index]

    token_ids, parents, probs = _tree(of("token_ids"), of("parents"), of("path_probs"))
    commit_len = _optional(_count, of("commit_lens"))
    path = tuple(node for node in map(int, of("accept_index") or ()) if node >= 0) if parents else ()
    if any(node >= len(parents) for node in path):
        raise ValueError("a path leads through the tree's nodes")
    request_id = of("request_ids")
    return Part(
        request_id=f"request {index}" if request_id is None else str(request_id),
        prefix_len=_optional(_count, of("prefix_lens")),
        node_limit=_optional(_count, of("node_limits")),
        token_ids=token_ids,
        parents=parents,
        path_probs=probs,
        path=path,
        emitted_ids=tuple(map(_count, (of("emitted_ids") or ())[:commit_len])),
        commit_len=commit_len,
        told_tokens=_optional(_number, of("expected_tokens"))
        if isinstance(line.get("expected_tokens"), list)
        else None,
    )


def _tree(
    token_ids: Sequence[int] | None, parents: Sequence[int] | None, probs: Sequence[float] | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """The tree's real nodes; padding, which has no parent, stands behind them."""
    if not token_ids or parents is None or probs is None:
        return (), (), ()
    if not len(token_ids) == len(parents) == len(probs):
        raise ValueError("a tree has as many tokens as parents and probabilities")
    real = 1 + next((n for n, parent in enumerate(parents[1:]) if parent < 0), len(parents) - 1)
    if any(not 0 <= _count(parent) < node for node, parent in enumerate(parents[1:real], 1)):
        raise ValueError("a parent comes before its children")
    return tuple(map(_count, token_ids[:real])), (-1, *parents[1:real]), tuple(map(_probability, probs[:real]))


def _optional(convert: Any, value: Any) -> Any:
    return None if value is None else convert(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VALUE:
        raise ValueError(f"a whole number of 0 or more was needed, got {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_VALUE:
        raise ValueError(f"a number of 0 or more was needed, got {value!r}")
    return float(value)


def _probability(value: Any) -> float:
    # A product of rounded factors may be a little more than 1.
    if _number(value) > 1.001:
        raise ValueError(f"a probability was needed, got {value!r}")
    return float(value)


def _sum(values: Sequence[Any]) -> Any:
    return None if not values or any(value is None for value in values) else sum(values)
