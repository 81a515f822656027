"""Greedy output is the target's own, token for token, in float32: one at a time, in batches, at every budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deploy.local.client import target_logprobs
from deploy.local.divergence import find_divergence
from tests.e2e.asking import PROMPTS, ask, ask_all
from tests.e2e.servers import Server

MAX_NEW_TOKENS = 48


@pytest.fixture(scope="module")
def reference(plain: Server) -> list[dict[str, Any]]:
    return [ask(plain.url, prompt, MAX_NEW_TOKENS) for prompt in PROMPTS]


def check_equal(plain: Server, reference: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    def logprobs(prefix: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        return target_logprobs(plain.url, prefix, tokens)

    for prompt, expected, answer in zip(PROMPTS, reference, answers, strict=True):
        prompt_ids = expected["prompt_ids"]
        found = find_divergence(prompt, prompt_ids, expected["output_ids"], answer["output_ids"], logprobs)
        assert found is None or found.is_near_tie, found


def accept_length(answers: list[dict[str, Any]]) -> float:
    rounds = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    return float(sum(answer["meta_info"]["completion_tokens"] for answer in answers) / rounds)


@pytest.fixture(scope="module", autouse=True)
def _prompt_ids(reference: list[dict[str, Any]], pair: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.model)
    for prompt, answer in zip(PROMPTS, reference, strict=True):
        answer["prompt_ids"] = tokenizer(prompt)["input_ids"]


def test_one_at_a_time(plain: Server, ddtree: Server, reference: list[dict[str, Any]]) -> None:
    answers = [ask(ddtree.url, prompt, MAX_NEW_TOKENS) for prompt in PROMPTS]
    check_equal(plain, reference, answers)
    assert all(answer["meta_info"]["spec_accept_length"] >= 1.0 for answer in answers)


def test_eight_at_once(plain: Server, ddtree: Server, reference: list[dict[str, Any]]) -> None:
    check_equal(plain, reference, ask_all(ddtree.url, PROMPTS, 8, max_new_tokens=MAX_NEW_TOKENS))


@pytest.mark.parametrize("budget", [1, 63])
def test_smallest_and_large_budget(
    budget: int, plain: Server, reference: list[dict[str, Any]], serve: Callable[..., Any]
) -> None:
    with serve("DDTREE", budget) as server:
        check_equal(plain, reference, ask_all(server.url, PROMPTS, 8, max_new_tokens=MAX_NEW_TOKENS))


def test_stock_chain_runs_beside_it_and_accepts_no_more(
    plain: Server, ddtree: Server, reference: list[dict[str, Any]], serve: Callable[..., Any]
) -> None:
    """A tree of at least D nodes holds the chain's best path or better ones."""
    trees = [ask(ddtree.url, prompt, MAX_NEW_TOKENS) for prompt in PROMPTS]
    with serve("DFLASH") as server:
        chains = [ask(server.url, prompt, MAX_NEW_TOKENS) for prompt in PROMPTS]
    check_equal(plain, reference, chains)
    assert accept_length(trees) >= accept_length(chains)
