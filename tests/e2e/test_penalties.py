"""Requests with penalties and minimum lengths against plain decoding, through servers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deploy.local.client import flush_cache
from tests.e2e.asking import PROMPTS, ask
from tests.e2e.servers import Server

NUM_TOKENS = 24


def random_penalties(seed: int) -> dict[str, Any]:
    """Of either sign; one request in five has none, so that batches mix both kinds."""
    chosen = random.Random(seed)
    if seed % 5 == 4:
        return {}
    values = {
        "frequency_penalty": round(chosen.uniform(-1, 2), 2),
        "presence_penalty": round(chosen.uniform(-1, 2), 2),
        "repetition_penalty": round(chosen.uniform(0.8, 1.8), 2),
        "min_new_tokens": chosen.randint(1, NUM_TOKENS),
    }
    return {name: value for name, value in values.items() if chosen.random() < 0.7}


def answers(url: str, how_many: int) -> list[dict[str, Any]]:
    """Of different lengths, eight at a time: requests join and leave a batch in its middle."""

    def one(index: int) -> dict[str, Any]:
        prompt = f"{PROMPTS[index % len(PROMPTS)]} {'and so ' * (index // len(PROMPTS))}"
        length = NUM_TOKENS - index % 7
        penalties = random_penalties(index)
        if "min_new_tokens" in penalties:
            penalties["min_new_tokens"] = min(penalties["min_new_tokens"], length)
        body = {"return_logprob": True} if index % 2 else {}
        return ask(url, prompt, length, body=body, **penalties)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(how_many)))


def test_greedy_answers_are_plain_decodings(plain: Server, ddtree: Server) -> None:
    mine, reference = (answers(server.url, 20) for server in (ddtree, plain))
    assert [one["output_ids"] for one in mine] == [one["output_ids"] for one in reference]
    assert [one["meta_info"]["finish_reason"] for one in mine] == [
        one["meta_info"]["finish_reason"] for one in reference
    ]
    for one, other in zip(mine[1::2], reference[1::2], strict=True):
        found, wanted = (
            [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]] for answer in (one, other)
        )
        assert found == pytest.approx(wanted, abs=1e-3)
    tokens = sum(len(one["output_ids"]) for one in mine)
    assert tokens > 1.2 * sum(one["meta_info"]["spec_verify_ct"] for one in mine), "rounds accept nothing"


def test_a_minimum_length_holds_inside_a_run_of_tokens(plain: Server, ddtree: Server) -> None:
    """The stop token comes early without it; with it the answer is as long as asked, and is plain decoding's."""
    story = "Once upon a time in a small village,"
    token = ask(plain.url, story, NUM_TOKENS)["output_ids"][3]
    asked = {"stop_token_ids": [token], "min_new_tokens": 9}
    mine, reference = (ask(server.url, story, NUM_TOKENS, **asked) for server in (ddtree, plain))
    assert mine["output_ids"] == reference["output_ids"]
    assert token not in mine["output_ids"][:9]


def test_a_second_request_begins_without_the_penalties_of_the_first(plain: Server, ddtree: Server) -> None:
    """The same slot, one after the other, with and without penalties, and from the prefix cache."""
    flush_cache(ddtree.url)
    for penalties in ({"frequency_penalty": 1.5}, {}, {"repetition_penalty": 1.4}, {"frequency_penalty": 1.5}):
        mine, reference = (ask(server.url, PROMPTS[3], 16, **penalties) for server in (ddtree, plain))
        assert mine["output_ids"] == reference["output_ids"], penalties
