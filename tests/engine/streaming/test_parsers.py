"""Parsers of tool calls and of reasoning read what plain decoding gives them, though a round emits several tokens.

SGLang's streamer sends synthetic answers, its parsers read them. What a client puts together is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.engine.streaming.parsers import (
    ARGUMENTS,
    NAMES,
    ONE_CALL,
    WRITTEN,
    parse_calls,
    parse_forced_calls,
    parse_reasoning,
    parsers,
    pieces_of,
    reasoning_parsers,
    sample,
)
from tests.engine.streaming.rounds import Pieces, commit, in_runs, request, streamer_under

pytestmark = pytest.mark.sglang

ROUND_LENGTHS = (9, 5, 16, 3)
CITIES = ("Paris", "Rome")
LOSE_CALLS = 10
"""Least number of SGLang's parsers that lose a call in these rounds, so that the comparison shows something."""


@pytest.fixture(scope="module")
def samples() -> dict[str, str]:
    return {name: sample(name) for name in parsers()}


def streamed(
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hooked: bool,
    forced: bool = False,
    lengths: Sequence[int] = ROUND_LENGTHS,
) -> list[str]:
    """The pieces of text that reach the HTTP server when an answer comes in rounds."""
    tokenizer = Pieces()
    tokens = tokenizer.encode(pieces_of(text))
    req = request("a", tokenizer)
    parser = {} if forced else {"tool_call_parser": "any"}
    with streamer_under("DDTREE", monkeypatch, hooked=hooked, **parser) as (stream, sent):
        for run in in_runs(tokens, lengths):
            commit(req, run)
            req.grammar = object() if forced else None
            stream([req])
            req.grammar = None
    assert "".join(sent.texts(tokenizer)) == text
    return sent.texts(tokenizer)


def differing(
    texts: dict[str, str], parse: Callable[[str, Sequence[str]], Any], monkeypatch: pytest.MonkeyPatch, *, hooked: bool
) -> list[str]:
    """Parsers that make something else of the rounds than of single tokens."""
    return [
        name
        for name, text in texts.items()
        if parse(name, streamed(text, monkeypatch, hooked=hooked)) != parse(name, pieces_of(text))
    ]


def test_every_parser_gets_both_calls(samples: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert differing(samples, parse_calls, monkeypatch, hooked=True) == []
    lost = differing(samples, parse_calls, monkeypatch, hooked=False)
    assert len(lost) >= LOSE_CALLS, lost


def test_samples_are_of_every_registered_parser_and_have_two_calls(samples: dict[str, str]) -> None:
    assert WRITTEN.keys() | ONE_CALL.keys() <= samples.keys()
    with_arguments = 0
    for name, text in samples.items():
        _, calls = parse_calls(name, pieces_of(text))
        count = 1 if name in ONE_CALL else len(NAMES)
        assert [called for called, _ in calls.values()] == list(NAMES[:count]), name
        with_arguments += all(city in arguments for city, (_, arguments) in zip(CITIES, calls.values(), strict=False))
    assert with_arguments >= len(samples) - 1


def test_forced_calls_are_parsed_from_json_without_a_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = zip(NAMES, ARGUMENTS, strict=True)
    text = "[" + ", ".join(f'{{"name": "{name}", "parameters": {arguments}}}' for name, arguments in calls) + "]"
    expected = parse_forced_calls(pieces_of(text))
    assert [name for _, name, _ in expected] == list(NAMES)
    for lengths in (ROUND_LENGTHS, (64,)):
        assert parse_forced_calls(streamed(text, monkeypatch, hooked=True, forced=True, lengths=lengths)) == expected


def test_reasoning_and_answer_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = reasoning_parsers()
    assert len(marks) >= 15
    texts = {name: f"{start}Let me think, then{end}\nThe answer: 42." for name, (start, end) in marks.items()}
    assert differing(texts, parse_reasoning, monkeypatch, hooked=True) == []
