"""What the page embeds: the chosen rounds with their trees laid out, and the course of all rounds, thinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddtree_sglang.viewer.layout import node_rows, plain_line, running, visible
from ddtree_sglang.viewer.rounds import Part, Round
from ddtree_sglang.viewer.statistics import thinned
from ddtree_sglang.viewer.terminal import describe_server, remarks
from ddtree_sglang.viewer.trace_file import Run, Summary, Trace
from ddtree_sglang.viewer.vocabulary import Vocabulary

MOST_POINTS = 1500
TEXT_BEFORE = 120
"""Characters of a request's text that stand before the round's own."""
TOKENS_BEFORE = 60


def page_data(trace: Trace, run: Run, chosen: Sequence[Summary], vocabulary: Vocabulary) -> dict[str, Any]:
    """The JSON that the scripts in `assets/` draw; `chosen` are rounds of the run, oldest first, at least one."""
    words, requests, texts = _Numbers(), _Numbers(), _Texts(vocabulary)
    rounds = []
    for summary in chosen:
        found = trace.load(summary)
        parts = [_part(part, texts.before(part), words, requests) for part in found.parts]
        rounds.append({**_facts(found, summary), "parts": parts})
    counts = [sum(part["request"] == place for one in rounds for part in one["parts"]) for place in requests.places()]
    points, step = thinned(run.rounds, MOST_POINTS)
    return {
        "server": describe_server(run.server) if run.server else "The trace does not name its server.",
        "notes": [
            *remarks(trace, run),
            *_left_out(run, chosen, step),
            *([plain_line(vocabulary.note)] if vocabulary.note else []),
        ],
        "tokens": [visible(vocabulary.text(token)) for token in words.things()],
        "running": [running(vocabulary.text(token)) for token in words.things()],
        "requests": [
            {"id": plain_line(name), "rounds": count} for name, count in zip(requests.things(), counts, strict=True)
        ],
        "course": {"points": points, "step": step},
        "rounds_in_all": len(run.rounds),
        "rounds": rounds,
    }


def _left_out(run: Run, chosen: Sequence[Summary], step: int) -> list[str]:
    notes = []
    if len(chosen) < len(run.rounds):
        notes.append(
            f"{len(chosen)} of {len(run.rounds)} rounds are here, {chosen[0].number} to {chosen[-1].number}; "
            "--rounds FIRST:LAST, --request ID and --max-rounds choose others"
        )
    if step > 1:
        notes.append(f"the course has all rounds, a point for each {step}")
    return notes


def _facts(found: Round, summary: Summary) -> dict[str, Any]:
    return {
        "round": summary.number,
        "batch": found.batch_size,
        "nodes": found.num_nodes,
        "total": found.total_ms,
        "stages": {plain_line(name): spent for name, spent in found.stages_ms.items()},
        "tokens": found.tokens,
        "expected": _short(found.expected_tokens),
        "expected_ms": found.expected_ms,
        "took_ms": summary.took_ms,
        "free": found.free_slots,
        "decision": None if found.decision is None else plain_line(found.decision),
    }


def _part(part: Part, before: str, words: _Numbers, requests: _Numbers) -> dict[str, Any]:
    has_bonus = bool(part.path and part.emitted_ids)
    drawn = (*part.parents, part.path[-1]) if has_bonus and part.parents else part.parents
    return {
        "request": requests.of(part.request_id),
        "prefix": part.prefix_len,
        "limit": part.node_limit,
        "before": before,
        "tokens": [words.of(token) for token in part.token_ids],
        "parents": part.parents,
        "probs": [_short(prob) for prob in part.path_probs],
        "rows": node_rows(drawn),
        "path": part.path,
        "emitted": [words.of(token) for token in part.emitted_ids],
        "commit": part.commit_len,
        "expected": _short(part.expected_tokens),
    }


def _short(value: float | None) -> float | None:
    """Four digits, as many as are shown."""
    return None if value is None else float(f"{value:.4g}")


class _Numbers:
    """Numbers things in the order in which they come."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def of(self, thing: Any) -> int:
        return self._places.setdefault(thing, len(self._places))

    def things(self) -> list[Any]:
        return list(self._places)

    def places(self) -> list[int]:
        return list(self._places.values())


class _Texts:
    """What each request had written before a round, as far as the rounds here tell."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[str, list[int]] = {}
        self._next_prefix: dict[str, int] = {}

    def before(self, part: Part) -> str:
        """The text before the round's root; a round that is not here breaks it off."""
        name, known = part.request_id, self._known.get(part.request_id, [])
        is_next = part.prefix_len is not None and self._next_prefix.get(name) == part.prefix_len
        known = known if is_next else []
        text = running(self._vocabulary.join(known[:-1]))[-TEXT_BEFORE:] if len(known) > 1 else ""
        self._known[name] = [*known[-TOKENS_BEFORE:], *part.emitted_ids]
        if part.prefix_len is not None and part.commit_len is not None:
            self._next_prefix[name] = part.prefix_len + part.commit_len
        return "\u2026" + text if part.prefix_len else text
