"""Answers under a grammar: valid, and plain decoding's token for token, whatever else is in the batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from deploy.local.client import ClientError, post
from tests.e2e.asking import PROMPTS, ask, ask_all
from tests.e2e.grammar_cases import (
    CITY,
    LLGUIDANCE_CASES,
    RESPONSE_FORMATS,
    TOOL_CHOICES,
    XGRAMMAR_CASES,
    GrammarCase,
)
from tests.e2e.servers import Server
from tests.e2e.serving import Serve
from tests.e2e.stream_cases import FEW, StreamCase, assembled, differences, events_of


def ask_cases(url: str, cases: Sequence[GrammarCase], at_once: int, **sampling: Any) -> list[dict[str, Any]]:
    def one(case: GrammarCase) -> dict[str, Any]:
        return ask(url, case.prompt, case.max_new_tokens, **case.sampling, **sampling)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, cases))


def seen(answer: dict[str, Any]) -> tuple[Any, ...]:
    return answer["output_ids"], answer["text"], answer["meta_info"]["finish_reason"]


def check(cases: Sequence[GrammarCase], answers: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    for case, answer, expected in zip(cases, answers, reference, strict=True):
        assert seen(answer) == seen(expected), case.name
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            assert case.holds(answer["text"]), (case.name, answer["text"])
    ended = [answer["meta_info"]["finish_reason"]["type"] == "stop" for answer in answers]
    assert sum(ended) > len(cases) / 2, "too few answers came to an end to say that they are valid"


@pytest.fixture(scope="module")
def reference(plain: Server) -> list[dict[str, Any]]:
    return ask_cases(plain.url, XGRAMMAR_CASES, 8)


def test_in_one_batch(reference: list[dict[str, Any]], ddtree: Server) -> None:
    check(XGRAMMAR_CASES, ask_cases(ddtree.url, XGRAMMAR_CASES, 16), reference)


def test_mixed_with_requests_without_a_grammar(reference: list[dict[str, Any]], plain: Server, ddtree: Server) -> None:
    free = [ask(plain.url, prompt, 24)["output_ids"] for prompt in PROMPTS[:4]]
    with ThreadPoolExecutor(2) as pool:
        masked = pool.submit(ask_cases, ddtree.url, XGRAMMAR_CASES[:8], 4)
        unmasked = pool.submit(ask_all, ddtree.url, PROMPTS[:4], 4, max_new_tokens=24)
        check(XGRAMMAR_CASES[:8], masked.result(), reference[:8])
        assert [answer["output_ids"] for answer in unmasked.result()] == free


def test_draws_obey_the_grammar(reference: list[dict[str, Any]], ddtree: Server) -> None:
    """With one candidate a draw is greedy; with all of them it is another valid answer."""
    cases = XGRAMMAR_CASES[:6]
    check(cases, ask_cases(ddtree.url, cases, 6, temperature=1.5, top_k=1), reference[:6])
    for case, answer in zip(cases, ask_cases(ddtree.url, cases, 6, temperature=1.0, min_p=0.05), strict=True):
        assert answer["meta_info"]["finish_reason"]["type"] == "length" or case.holds(answer["text"]), case.name


def test_log_probabilities_are_those_of_the_masked_distribution(plain: Server, ddtree: Server) -> None:
    case = XGRAMMAR_CASES[0]
    body = {"return_logprob": True, "top_logprobs_num": 2}
    mine, expected = (
        ask(server.url, case.prompt, case.max_new_tokens, body=body, **case.sampling)["meta_info"]
        for server in (ddtree, plain)
    )
    for key in ("output_token_logprobs", "output_top_logprobs"):
        for ours, theirs in zip(_numbers(mine[key]), _numbers(expected[key]), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def _numbers(entries: Any) -> list[float]:
    """Log-probabilities and ids of a list of entries or of a list of such lists, one after the other."""
    if entries is None or isinstance(entries, str):
        return []
    return [entries] if not isinstance(entries, list) else [one for entry in entries for one in _numbers(entry)]


def test_an_ignored_end_token_is_followed_by_what_plain_decoding_adds(plain: Server, ddtree: Server) -> None:
    cases = [case for case in XGRAMMAR_CASES if case.name in ("regex-digits", "schema-enum", "schema-bounds", "ebnf")]
    mine, reference = (ask_cases(server.url, cases, 4, ignore_eos=True) for server in (ddtree, plain))
    assert [seen(answer) for answer in mine] == [seen(answer) for answer in reference]


@pytest.mark.parametrize(
    "sampling",
    [{"regex": "("}, {"json_schema": '{"type": "nonsense"}'}, {"ebnf": "root ::= "}, {"structural_tag": "{}"}],
    ids=lambda sampling: next(iter(sampling)),
)
def test_a_grammar_that_does_not_compile_is_the_same_400(
    sampling: dict[str, Any], plain: Server, ddtree: Server
) -> None:
    said = []
    for server in (plain, ddtree):
        with pytest.raises(ClientError, match="answered 400") as refused:
            ask(server.url, PROMPTS[0], 8, **sampling)
        # xgrammar's messages begin with the time of day.
        said.append(re.sub(r"\[\d\d:\d\d:\d\d\]", "", str(refused.value)))
    assert said[0] == said[1]


def chat(server: Server, body: dict[str, Any]) -> tuple[Any, Any]:
    answer = post(server.url, "/v1/chat/completions", body)
    choice = answer["choices"][0]
    for call in choice["message"].get("tool_calls") or ():
        del call["id"]
    return choice, answer["usage"]


@pytest.mark.parametrize("name", RESPONSE_FORMATS)
def test_response_format(name: str, plain: Server, ddtree: Server) -> None:
    assert chat(ddtree, RESPONSE_FORMATS[name]) == chat(plain, RESPONSE_FORMATS[name])


@pytest.mark.parametrize("name", TOOL_CHOICES)
def test_tool_choice_without_a_parser(name: str, plain: Server, ddtree: Server) -> None:
    assert chat(ddtree, TOOL_CHOICES[name]) == chat(plain, TOOL_CHOICES[name])


@pytest.mark.parametrize("n", [3])
def test_parallel_answers_each_have_their_own_state(n: int, plain: Server, ddtree: Server) -> None:
    mine, reference = (
        ask(server.url, "The server's address is ", 24, regex=r"([0-9]{1,3}\.){3}[0-9]{1,3}", n=n)
        for server in (ddtree, plain)
    )
    assert [seen(one) for one in mine] == [seen(one) for one in reference]  # type: ignore[call-overload]


GUIDED = ("--grammar-backend", "llguidance")
# Servers whose budget follows what rounds cost then try one width after another while they serve.
UNMEASURED = ("--speculative-ddtree-measure-seconds", "0")
# Under llguidance a reasoning parser makes SGLang refuse every grammar (reasoner_grammar_backend.py asks its backend).
PARSED = ("--reasoning-parser", "qwen3", "--tool-call-parser", "qwen25")
THOUGHTS = (
    "".join(f"Q: {a}+{b}?\n<think>easy</think>{a + b}\n" for a, b in ((1, 1), (2, 3), (4, 4), (5, 2)))
    + "Q: 6+1?\n<think>"
)


@pytest.fixture(scope="module")
def guided(serve: Serve) -> Iterator[tuple[Server, Server]]:
    """Plain decoding and DDTREE with llguidance."""
    with serve(None, None, *GUIDED) as reference, serve("DDTREE", 8, *GUIDED, *UNMEASURED, policy=None) as mine:
        yield reference, mine


@pytest.fixture(scope="module")
def parsed(serve: Serve) -> Iterator[tuple[Server, Server]]:
    """Plain decoding and DDTREE with parsers of reasoning and of tool calls."""
    with serve(None, None, *PARSED) as reference, serve("DDTREE", 8, *PARSED, *UNMEASURED, policy=None) as mine:
        yield reference, mine


def test_llguidance_in_one_batch(guided: tuple[Server, Server]) -> None:
    reference, mine = guided
    check(LLGUIDANCE_CASES, ask_cases(mine.url, LLGUIDANCE_CASES, 16), ask_cases(reference.url, LLGUIDANCE_CASES, 8))


def test_llguidance_goes_on_behind_an_ignored_end_token(guided: tuple[Server, Server]) -> None:
    cases = [case for case in LLGUIDANCE_CASES if case.name in ("regex-digits", "schema-enum", "schema-bounds")]
    expected, mine = (ask_cases(server.url, cases, 4, ignore_eos=True) for server in guided)
    assert [seen(answer) for answer in mine] == [seen(answer) for answer in expected]


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_streams_of_whole_rounds_say_what_plain_decodings_do(case: StreamCase, guided: tuple[Server, Server]) -> None:
    """Without `--speculative-ddtree-stream-tokens`, in fewer pieces; under a grammar in as many."""
    expected, mine = (events_of(server, case) for server in guided)
    assert differences([assembled(case, expected)], [assembled(case, mine)]) == []
    assert len(mine) < len(expected) or "tools" in case.name


def test_a_grammar_begins_behind_the_end_of_reasoning(parsed: tuple[Server, Server]) -> None:
    expected, mine = (
        ask(server.url, THOUGHTS, 24, regex="[0-9]+ apples", body={"require_reasoning": True}) for server in parsed
    )
    assert seen(mine) == seen(expected)
    assert mine["text"].partition("</think>")[2].strip().endswith(" apples"), mine["text"]


@pytest.mark.parametrize("name", TOOL_CHOICES)
def test_tool_choice(name: str, parsed: tuple[Server, Server]) -> None:
    body = {**TOOL_CHOICES[name], "chat_template_kwargs": {"enable_thinking": False}}
    expected, (mine, usage) = (chat(server, body) for server in parsed)
    assert (mine, usage) == expected
    if name in ("required", "named"):
        (call,) = mine["message"]["tool_calls"]
        assert name == "required" or call["function"]["name"] == "time"
        jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
