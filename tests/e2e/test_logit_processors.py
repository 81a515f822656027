"""Custom logit processors and thinking budgets: plain decoding's tokens, whatever a processor reads and keeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.asking import PROMPTS, ask
from tests.e2e.logit_processors import (
    THINK_END,
    THINK_START,
    counting,
    no_repeated_pair,
    thinking_budget,
    without_parameters,
)
from tests.e2e.servers import Server

pytestmark = pytest.mark.sglang


def with_processor(server: Server, prompt: Any, processor: str, params: Any, tokens: int = 32, **more: Any) -> Any:
    body = {"custom_logit_processor": processor, **more.pop("body", {})}
    if params is not None:
        more["custom_params"] = params
    return ask(server.url, prompt, tokens, body=body, **more)


def test_a_processor_that_reads_the_requests_tokens(plain: Server, ddtree: Server) -> None:
    params = {"ngram_size": 2, "window_size": 200}
    for prompt in PROMPTS[:3]:
        mine, reference = (with_processor(server, prompt, no_repeated_pair(), params) for server in (ddtree, plain))
        assert mine["output_ids"] == reference["output_ids"]
        pairs = list(zip(reference["output_ids"], reference["output_ids"][1:], strict=False))
        assert len(set(pairs)) == len(pairs), "the processor has to have been at work"
    assert mine["meta_info"]["spec_accept_length"] > 1.0


def test_a_processor_that_keeps_what_it_saw(plain: Server, ddtree: Server) -> None:
    """On itself and in the request's parameters; one token more or less seen changes what follows."""
    for prompt in PROMPTS[:3]:
        mine, reference = (with_processor(server, prompt, counting(), {}) for server in (ddtree, plain))
        assert mine["output_ids"] == reference["output_ids"]
        assert mine["output_ids"] != ask(plain.url, prompt, 32)["output_ids"]


def test_a_processor_without_parameters(plain: Server, ddtree: Server) -> None:
    mine, reference = (with_processor(server, PROMPTS[0], without_parameters(), None) for server in (ddtree, plain))
    assert mine["output_ids"] == reference["output_ids"]


def test_processors_share_a_batch_with_requests_that_have_none(plain: Server, ddtree: Server) -> None:
    """Which requests are in a batch changes nothing for a processor that looks at one row at a time."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        (no_repeated_pair(), {"ngram_size": 2, "window_size": 200}),
        ("", {}),
        (thinking_budget(), {"thinking_budget": 5}),
        ("", {}),
    )

    def answer(server: Server, index: int) -> Any:
        processor, params = kinds[index % len(kinds)]
        tokens = 12 + 6 * (index % 5)
        if not processor:
            return ask(server.url, PROMPTS[index], tokens)["output_ids"]
        return with_processor(server, PROMPTS[index], processor, params, tokens)["output_ids"]

    reference = [answer(plain, index) for index in range(len(PROMPTS))]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        mine = list(pool.map(lambda index: answer(ddtree, index), range(len(PROMPTS))))
    assert mine == reference


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
def test_thinking_ends_at_its_budget(budget: int, plain: Server, ddtree: Server) -> None:
    """A round may cross the budget; the line's end and the end of thinking come where plain decoding has them."""
    prompt = [*range(500, 520), THINK_START]
    mine, reference = (
        with_processor(server, prompt, thinking_budget(), {"thinking_budget": budget}, 24) for server in (ddtree, plain)
    )
    assert mine["output_ids"] == reference["output_ids"]
    assert reference["output_ids"].index(THINK_END) <= budget + 1


def top_tokens(answer: Any) -> list[list[int]]:
    return [[entry[1] for entry in step] for step in answer["meta_info"]["output_top_logprobs"]]


def test_stops_and_log_probabilities_under_a_processor(plain: Server, ddtree: Server) -> None:
    params = {"ngram_size": 2, "window_size": 200}
    more: dict[str, Any] = {"stop": ["."], "body": {"return_logprob": True, "top_logprobs_num": 2}}
    for prompt in PROMPTS[:4]:
        mine, reference = (
            with_processor(server, prompt, no_repeated_pair(), params, 40, **more) for server in (ddtree, plain)
        )
        assert (mine["output_ids"], mine["text"]) == (reference["output_ids"], reference["text"])
        assert mine["meta_info"]["finish_reason"] == reference["meta_info"]["finish_reason"]
        ours, theirs = (meta["output_token_logprobs"] for meta in (mine["meta_info"], reference["meta_info"]))
        assert [entry[0] for entry in ours] == pytest.approx([entry[0] for entry in theirs], abs=1e-3)
        top = [
            [[entry[1] for entry in step] for step in one["meta_info"]["output_top_logprobs"]]
            for one in (mine, reference)
        ]
        assert top[0] == top[1]


def test_a_processor_under_sampling_with_one_candidate(plain: Server, ddtree: Server) -> None:
    """The sampler's own path, whose result one candidate makes certain."""
    params = {"ngram_size": 2, "window_size": 200}
    mine, reference = (
        with_processor(server, PROMPTS[2], no_repeated_pair(), params, **sampling)
        for server, sampling in ((ddtree, {"temperature": 1.5, "top_k": 1}), (plain, {}))
    )
    assert mine["output_ids"] == reference["output_ids"]
