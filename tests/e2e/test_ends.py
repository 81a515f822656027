"""Ends of requests are plain decoding's: where the answer stops, why, and every field that counts up to there.

The shapes end within a round's run, at its edges, by several causes at once; each is a request of its own in one batch
of `/generate`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from deploy.local.client import flush_cache, post
from tests.e2e.asking import PROMPTS, ask, chunks, rounds_of
from tests.e2e.servers import Server

LENGTH = 40
STORY = "Once upon a time in a small village,"
OF_ITS_OWN = ("spec_", "e2e_latency", "id", "response_sent_to_client_ts", "decode_throughput", "queue_time", "cached_")
"""Fields, and beginnings of fields, that differ between two runs of one server, or that plain decoding lacks.

Which requests of a batch find which others' tokens in the cache depends on when they arrive.
"""


def comparable(answer: Any) -> Any:
    """An answer without times, identities and speculation; log-probabilities to three digits."""
    if isinstance(answer, dict):
        kept = {key: value for key, value in answer.items() if not key.startswith(OF_ITS_OWN)}
        return {key: comparable(value) for key, value in kept.items() if key != "created"}
    if isinstance(answer, list):
        return [comparable(value) for value in answer]
    return pytest.approx(answer, abs=2e-3) if isinstance(answer, float) else answer


def batch(url: str, prompts: Sequence[str], sampling: Sequence[dict[str, Any]], **body: Any) -> list[dict[str, Any]]:
    """One request of `/generate` for all of them."""
    params = [{"temperature": 0.0, "max_new_tokens": LENGTH, **one} for one in sampling]
    answers: list[dict[str, Any]] = post(
        url, "/generate", {"text": list(prompts), "sampling_params": params, **body}, timeout_s=600
    )
    return answers


def end_shapes(answer: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Sampling parameters that end a greedy decoding of this answer, by causes that lie close together."""
    ids, text = answer["output_ids"], answer["text"]

    def piece() -> str:
        start = rng.randrange(len(text) // 8, len(text) - 12)
        return str(text[start : start + rng.randint(1, 9)])

    def token() -> int:
        return int(rng.choice(ids[3:30]))

    yield {"stop": [piece(), piece(), piece()]}
    yield {"stop": piece(), "no_stop_trim": True}
    yield {"stop_token_ids": [token(), token()]}
    yield {"stop_token_ids": [token()], "no_stop_trim": True, "skip_special_tokens": False}
    yield {"stop": [piece()], "stop_token_ids": [token(), token()]}
    yield {"stop": [piece()], "max_new_tokens": rng.randint(2, 20)}
    yield {"stop_token_ids": [token()], "max_new_tokens": rng.randint(2, 20)}
    yield {"stop_regex": ["[a-z]+ [a-z]+ [a-z]", "e", "[A-Z]"], "max_new_tokens": rng.randint(5, LENGTH)}
    yield {"stop_regex": "[a-z]{3}$"}
    yield {"stop": [piece(), piece()], "stop_regex": [" [a-z]$", "x"], "stop_token_ids": [token()]}
    yield {"stop_token_ids": [token()], "ignore_eos": True}
    yield {"max_new_tokens": rng.randint(1, 9)}


@pytest.fixture(scope="module")
def full(plain: Server) -> list[dict[str, Any]]:
    """What the target says when nothing ends it early."""
    return batch(plain.url, PROMPTS[:4], [{}] * 4)


@pytest.mark.parametrize("logprobs", [False, True])
def test_ends_of_many_shapes_are_plain_decodings(
    logprobs: bool, plain: Server, ddtree: Server, full: list[dict[str, Any]]
) -> None:
    rng = random.Random(7 + logprobs)
    asked = [(prompt, shape) for prompt, one in zip(PROMPTS, full, strict=False) for shape in end_shapes(one, rng)]
    body = {"return_logprob": True, "top_logprobs_num": 2, "token_ids_logprob": [5, 9]} if logprobs else {}
    prompts, shapes = zip(*asked, strict=True)
    mine, reference = ([], [])
    for server, answers in ((ddtree, mine), (plain, reference)):
        flush_cache(server.url)
        answers += batch(server.url, prompts, shapes, **body)
    for shape, ours, theirs in zip(shapes, mine, reference, strict=True):
        assert comparable(ours) == comparable(theirs), shape
    ends = [answer["meta_info"]["finish_reason"]["type"] for answer in reference]
    assert ends.count("stop") > 20
    assert ends.count("length") > 4


def test_a_request_for_no_token_has_no_log_probability(plain: Server, ddtree: Server) -> None:
    for body in (
        {"return_logprob": True, "logprob_start_len": 0},
        {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
        {"return_logprob": True, "token_ids_logprob": [5, 9]},
        {"return_logprob": True},
        {},
    ):
        mine, reference = (ask(server.url, STORY, 0, body=body) for server in (ddtree, plain))
        assert comparable(mine) == comparable(reference), body
        assert mine["output_ids"] == []


def test_the_next_turn_finds_in_the_cache_what_plain_decoding_left(
    plain: Server, ddtree: Server, full: list[dict[str, Any]]
) -> None:
    """Tokens past a stop are in no key: a longer prompt hits as many tokens as after plain decoding."""
    ids = full[2]["output_ids"]
    shapes = [{"stop_token_ids": [ids[11]]}, {"stop": full[2]["text"][20:27]}, {"max_new_tokens": 7}]
    for shape in shapes:
        found = []
        for server in (plain, ddtree):
            flush_cache(server.url)
            batch(server.url, [PROMPTS[2]], [shape])
            again = ask(server.url, PROMPTS[2] + full[2]["text"], 1)
            found.append(again["meta_info"]["cached_tokens"])
        assert found[0] == found[1], shape


def test_streams_end_where_the_answer_ends(plain: Server, ddtree: Server, full: list[dict[str, Any]]) -> None:
    text = full[0]["text"]
    for extra in ({"stop": [text[30:34], text[24:31]]}, {"stop_token_ids": [full[0]["output_ids"][9]]}):
        body = {"text": PROMPTS[0], "sampling_params": {"temperature": 0.0, "max_new_tokens": LENGTH, **extra}}
        whole = post(plain.url, "/generate", body)
        last = chunks(ddtree.url, "/generate", body)[-1]
        assert comparable(last) == comparable(whole), extra


@pytest.mark.parametrize("extra", [{"stop": ["e", "re", "er"]}, {"stop_token_ids": [28, 30]}, {"max_tokens": 5}])
def test_openai_answers_say_what_matched(extra: dict[str, Any], plain: Server, ddtree: Server) -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Name three primary colours."}],
        "max_tokens": 24,
        "temperature": 0,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        **extra,
    }
    mine, reference = (post(server.url, "/v1/chat/completions", body) for server in (ddtree, plain))
    assert comparable(mine["choices"]) == comparable(reference["choices"])
    assert mine["usage"] == reference["usage"]


def test_a_request_may_ask_for_a_smaller_tree_or_none_in_a_batch_with_others(
    ddtree: Server, full: list[dict[str, Any]]
) -> None:
    budgets = [None, 0, 3, 9999]
    shapes = [{} if budget is None else {"custom_params": {"ddtree": {"budget": budget}}} for budget in budgets]
    answers = batch(ddtree.url, [PROMPTS[2]] * 4, shapes)
    assert [answer["output_ids"] for answer in answers] == [full[2]["output_ids"]] * 4
    rounds = [answer["meta_info"]["spec_verify_ct"] for answer in answers]
    assert rounds[1] == LENGTH - 1 == len(full[2]["output_ids"]) - 1
    assert rounds[1] > rounds[2] >= rounds[0] == rounds[3]
    assert answers[1]["meta_info"]["spec_correct_drafts_histogram"] == [LENGTH - 1]


def test_a_batch_that_wants_no_tree_drafts_nothing(ddtree: Server) -> None:
    """Asked as the documentation says, by OpenAI's own client."""
    from openai import OpenAI

    before = len(rounds_of(ddtree.trace))
    OpenAI(base_url=f"{ddtree.url}/v1", api_key="none").chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Name three primary colours."}],
        max_tokens=6,
        temperature=0.0,
        extra_body={"custom_params": {"ddtree": {"budget": 0}}},
    )
    assert [one["num_nodes"] for one in rounds_of(ddtree.trace)[before:]] == [1] * 5


def test_a_budget_that_is_none_is_a_400(ddtree: Server) -> None:
    with pytest.raises(RuntimeError, match=r"answered 400.*custom_params\.ddtree"):
        ask(ddtree.url, STORY, 8, custom_params={"ddtree": {"budgets": 3}})
