"""A round's tokens leave the scheduler as in plain decoding: the same messages, one for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.streaming import token_outputs
from tests.engine.streaming.rounds import Pieces, commit, in_runs, request, streamer_under

pytestmark = pytest.mark.sglang

WORDS = [f"w{i} " for i in range(12)]
PARSER = {"tool_call_parser": "qwen25"}
ROUND_LENGTHS = ([4], [1, 3, 2], [16], [2, 7])
Requests = Callable[[Pieces], list[Any]]


def messages(
    requests: Requests,
    lengths: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
    *,
    hooked: bool = True,
    stream_interval: int = 1,
    think_end: str = "w5 ",
) -> list[list[dict[str, Any]]]:
    """By request, what is sent when its tokens come in rounds of these lengths; all requests share the rounds."""
    tokenizer = Pieces()
    tokens = tokenizer.encode(WORDS)
    reqs = requests(tokenizer)
    end = tokens[WORDS.index(think_end)]
    options: dict[str, Any] = {"hooked": hooked, "stream_interval": stream_interval, **PARSER}
    with streamer_under("DDTREE", monkeypatch, **options) as (stream, sent):
        for run in in_runs(tokens, lengths):
            going = [req for req in reqs if not req.finished()]
            for req in going:
                commit(req, run, end)
            stream(going, any(req.return_logprob for req in reqs))
    return [[output for output in sent.outputs() if output["rids"] == req.rid] for req in reqs]


REQUESTS: dict[str, Requests] = {
    "plain text": lambda tokenizer: [request("a", tokenizer)],
    "log-probabilities": lambda tokenizer: [request("a", tokenizer, logprobs=True)],
    "an end inside a round": lambda tokenizer: [request("a", tokenizer, stop_token_ids=[6])],
    "a stop string inside a round": lambda tokenizer: [request("a", tokenizer, stop=["7 w8"], logprobs=True)],
    "a stop string that only begins": lambda tokenizer: [request("a", tokenizer, stop=["w3 w4 never"])],
    "a limit inside a round": lambda tokenizer: [with_limit(request("a", tokenizer), 6)],
    "reasoning": lambda tokenizer: [request("a", tokenizer, require_reasoning=True)],
    "hidden states": lambda tokenizer: [request("a", tokenizer, return_hidden_states=True)],
    "an interval": lambda tokenizer: [request("a", tokenizer, stream_interval=3)],
    "several": lambda tokenizer: [
        request("a", tokenizer, logprobs=True),
        request("b", tokenizer, stop_token_ids=[4]),
        request("c", tokenizer, stream_interval=2),
        request("d", tokenizer, stop=["w9"]),
    ],
}


def with_limit(req: Any, max_new_tokens: int) -> Any:
    req.sampling_params.max_new_tokens = max_new_tokens
    return req


@pytest.mark.parametrize("lengths", ROUND_LENGTHS, ids=str)
@pytest.mark.parametrize("kind", REQUESTS)
def test_messages_are_plain_decodings(kind: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = messages(REQUESTS[kind], [1], monkeypatch, hooked=False)
    assert messages(REQUESTS[kind], lengths, monkeypatch) == plain


def test_the_last_hidden_state_is_no_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a round's states the last token's is kept; plain decoding sends one with each token."""

    def asking(tokenizer: Pieces) -> list[Any]:
        return [request("a", tokenizer, return_hidden_states="last")]

    plain, mine = (
        [output["output_hidden_states"] for output in messages(asking, lengths, monkeypatch, hooked=hooked)[0]]
        for lengths, hooked in (([1], False), ([1, 3, 2], True))
    )
    assert plain == [[float(token)] for token in range(len(WORDS))]
    expected = [state if index % 6 in (0, 3, 5) else None for index, state in enumerate(plain)]
    assert mine == expected


def test_the_streamer_alone_sends_a_round_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = messages(REQUESTS["plain text"], [4], monkeypatch, hooked=False)
    assert [output["completion_tokens"] for output in sent[0]] == [4, 8, 12]


def test_the_servers_interval_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = REQUESTS["plain text"]
    plain = messages(kind, [1], monkeypatch, hooked=False, stream_interval=5)
    assert messages(kind, [4], monkeypatch, stream_interval=5) == plain
    assert [output["completion_tokens"] for output in plain[0]] == [1, 6, 11]


def test_tokens_that_were_held_back_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a long interval a round costs as many looks as it has tokens."""
    tokenizer = Pieces()
    tokens = tokenizer.encode(WORDS)
    req = request("a", tokenizer)
    looks: list[bool] = []
    grow = token_outputs._Growing.grow

    def noting(one: Any) -> bool:
        looks.append(grow(one))
        return looks[-1]

    monkeypatch.setattr(token_outputs._Growing, "grow", noting)
    with streamer_under("DDTREE", monkeypatch, hooked=True, stream_interval=100, **PARSER) as (stream, sent):
        for run in in_runs(tokens, [4]):
            commit(req, run)
            stream([req])
    assert [output["completion_tokens"] for output in sent.outputs()] == [1]
    assert looks.count(True) == 9


def test_what_is_not_streamed_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(tokenizer: Pieces) -> list[Any]:
        reqs = [request("a", tokenizer), request("b", tokenizer, stream=False)]
        return [with_limit(req, 12) for req in reqs]

    streamed, whole = messages(both, [5], monkeypatch)
    assert len(streamed) == 12
    assert [len(output["output_ids"]) for output in whole] == [12]


def test_a_request_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens behind an end stay where the scheduler put them, and a request that was sent is not sent again."""
    tokenizer = Pieces()
    tokens = tokenizer.encode(WORDS)
    req = request("a", tokenizer, stop_token_ids=[tokens[3]])
    skipped = request("b", tokenizer)
    with streamer_under("DDTREE", monkeypatch, hooked=True, **PARSER) as (stream, sent):
        for one in (req, skipped):
            commit(one, tokens)
        before = list(req.output_ids), req.finished_reason, req.finished_len
        stream([req, skipped], skip_req=skipped)
        assert (list(req.output_ids), req.finished_reason, req.finished_len) == before
        assert len(sent.payloads) == 4
        stream([req])
        assert len(sent.payloads) == 4
        assert {output["rids"] for output in sent.outputs()} == {"a"}


def test_a_request_is_put_back_when_sending_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Pieces()
    req = request("a", tokenizer)
    with streamer_under("DDTREE", monkeypatch, hooked=True, **PARSER) as (stream, sent):
        commit(req, tokenizer.encode(WORDS))

        def fail(payload: Any) -> None:
            raise OSError("no socket")

        monkeypatch.setattr(sent, "send_output", fail)
        with pytest.raises(OSError, match="no socket"):
            stream([req])
    assert tokenizer.decode(req.output_ids) == "".join(WORDS)
    assert (req.finished_len, req.finished_reason) == (None, None)


@pytest.mark.parametrize(
    ("algorithm", "serving", "config", "grammar", "expected"),
    [
        ("DDTREE", {}, "", None, 1),
        ("DDTREE", {}, '{"stream_tokens": true}', None, 12),
        ("DDTREE", {"tool_call_parser": "qwen25"}, "", None, 12),
        ("DDTREE", {"reasoning_parser": "qwen3"}, "", None, 12),
        ("DDTREE", {}, "", object(), 12),
        ("DFLASH", {"tool_call_parser": "qwen25"}, "", None, 1),
    ],
)
def test_who_gets_token_by_token(
    algorithm: str, serving: dict[str, str], config: str, grammar: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_ENV, config)
    tokenizer = Pieces()
    req = request("a", tokenizer)
    with streamer_under(algorithm, monkeypatch, hooked=True, **serving) as (stream, sent):
        commit(req, tokenizer.encode(WORDS))
        req.grammar = grammar
        stream([req])
    assert len(sent.payloads) == expected
