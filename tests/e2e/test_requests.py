"""What a user may ask of the server: stops, streams, sampling, prefixes, long prompts, refusals, log-probabilities."""

from __future__ import annotations

import time

import pytest

from deploy.local.client import flush_cache, post
from tests.e2e.asking import PROMPTS, ask, ask_all, chunks
from tests.e2e.servers import Server

STORY = "Once upon a time in a small village,"


def test_chat_completion_answers_and_counts_tokens(plain: Server, ddtree: Server) -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Name three primary colours."}],
        "max_tokens": 24,
        "temperature": 0,
    }
    mine, reference = (post(server.url, "/v1/chat/completions", body) for server in (ddtree, plain))
    assert mine["choices"][0]["message"]["content"] == reference["choices"][0]["message"]["content"]
    assert mine["usage"] == reference["usage"]


def test_stream_joins_to_the_whole_answer(ddtree: Server) -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Count from one to ten."}],
        "max_tokens": 32,
        "temperature": 0,
    }
    whole = post(ddtree.url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    sent = chunks(ddtree.url, "/v1/chat/completions", body)
    pieces = [choice["delta"].get("content") or "" for chunk in sent for choice in chunk["choices"]]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1


def test_an_id_that_is_given_again_behind_a_stream_is_not_cut_short(ddtree: Server) -> None:
    """SGLang ends what is left of a stream by its id, two seconds after it."""
    body = {"rid": "given-again"}
    chunks(ddtree.url, "/generate", {"text": STORY, "sampling_params": {"max_new_tokens": 1}, **body})
    began = time.monotonic()
    answer = ask(ddtree.url, STORY, 400, ignore_eos=True, body=body)
    assert time.monotonic() - began > 2.5, "the answer was over before it could have been ended"
    assert len(answer["output_ids"]) == 400


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_max_new_tokens_is_exact_though_a_round_may_accept_more(max_new_tokens: int, ddtree: Server) -> None:
    answer = ask(ddtree.url, STORY, max_new_tokens)
    assert len(answer["output_ids"]) == max_new_tokens
    assert answer["meta_info"]["finish_reason"]["type"] == "length"


def test_stop_string_and_stop_token_end_where_plain_decoding_ends(plain: Server, ddtree: Server) -> None:
    full = ask(plain.url, STORY, 40)
    token = full["output_ids"][17]
    for sampling in ({"stop": ["."]}, {"stop_token_ids": [token]}):
        mine, reference = (ask(server.url, STORY, 40, **sampling) for server in (ddtree, plain))
        assert mine["text"] == reference["text"]
        assert mine["output_ids"] == reference["output_ids"]
        assert mine["meta_info"]["finish_reason"] == reference["meta_info"]["finish_reason"]
    assert len(reference["output_ids"]) <= 18


def test_prefix_cache_hit_changes_nothing(ddtree: Server) -> None:
    flush_cache(ddtree.url)
    prompt = "In a distant future, " * 20 + "the last librarian"
    cold = ask(ddtree.url, prompt, 24)
    warm = ask(ddtree.url, prompt, 24)
    assert cold["meta_info"]["cached_tokens"] == 0
    assert warm["meta_info"]["cached_tokens"] > 50
    assert warm["output_ids"] == cold["output_ids"]
    # The generated tail is in the cache too, the drafter's part of it included.
    longer = ask(ddtree.url, prompt + cold["text"], 8)
    assert longer["meta_info"]["cached_tokens"] > warm["meta_info"]["cached_tokens"]


def test_prompt_longer_than_a_prefill_chunk(plain: Server, ddtree: Server) -> None:
    """The platform prefills 1,024 tokens at a time."""
    prompt = [100 + (7 * i) % 900 for i in range(1500)]
    mine, reference = (ask(server.url, prompt, 12) for server in (ddtree, plain))
    assert mine["meta_info"]["prompt_tokens"] == 1500
    assert mine["output_ids"] == reference["output_ids"]


def test_top_k_one_is_greedy_at_any_temperature(ddtree: Server) -> None:
    greedy = ask(ddtree.url, STORY, 24)
    sampled = ask(ddtree.url, STORY, 24, temperature=1.5, top_k=1)
    assert sampled["output_ids"] == greedy["output_ids"]


def test_greedy_and_sampled_requests_share_a_batch(ddtree: Server) -> None:
    greedy = ask(ddtree.url, STORY, 24)["output_ids"]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(6) as pool:
        noise = [pool.submit(ask, ddtree.url, prompt, 24, temperature=1.0, top_p=0.9) for prompt in PROMPTS[:5]]
        mine = pool.submit(ask, ddtree.url, STORY, 24).result()
        assert all(len(one.result()["output_ids"]) > 0 for one in noise)
    assert mine["output_ids"] == greedy


def test_logprobs_are_the_targets(plain: Server, ddtree: Server) -> None:
    body = {"return_logprob": True, "top_logprobs_num": 3}
    mine, reference = (ask(server.url, STORY, 16, body=body)["meta_info"] for server in (ddtree, plain))
    for key in ("output_token_logprobs",):
        assert [entry[1] for entry in mine[key]] == [entry[1] for entry in reference[key]]
        for ours, theirs in zip(mine[key], reference[key], strict=True):
            assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
    top = [[entry[1] for entry in step] for step in mine["output_top_logprobs"]]
    assert top == [[entry[1] for entry in step] for step in reference["output_top_logprobs"]]


def test_logit_bias_is_honoured_at_every_node(plain: Server, ddtree: Server) -> None:
    """A ban of the tokens that greedy decoding would choose first."""
    banned = {str(token): -100.0 for token in set(ask(plain.url, STORY, 6)["output_ids"])}
    mine, reference = (ask(server.url, STORY, 16, logit_bias=banned) for server in (ddtree, plain))
    assert mine["output_ids"] == reference["output_ids"]
    assert not {str(token) for token in mine["output_ids"]} & set(banned)


def test_a_budget_of_another_form_is_a_400_that_says_what_is_wrong(ddtree: Server) -> None:
    with pytest.raises(RuntimeError, match=r"answered 400.*custom_params\.ddtree must be an object such as .*, got 5;"):
        ask(ddtree.url, STORY, 8, custom_params={"ddtree": 5})


def test_more_requests_than_the_server_runs_at_once_all_finish(ddtree: Server) -> None:
    answers = ask_all(ddtree.url, [f"{prompt} ({i})" for i in range(5) for prompt in PROMPTS], 40, max_new_tokens=6)
    assert [len(answer["output_ids"]) for answer in answers] == [6] * 40
