"""Policy load through a real server: fewer nodes the more requests there are, none at many, the same tokens always."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.e2e.asking import PROMPTS, ask, ask_all, rounds_of
from tests.e2e.servers import Server

MAX_NEW_TOKENS = 32


def test_budget_follows_the_batch_and_tokens_do_not(plain: Server, serve: Callable[..., Any]) -> None:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}
    expected = [ask(plain.url, prompt, **options)["output_ids"] for prompt in PROMPTS]
    flags = ("--speculative-ddtree-policy", "load", "--speculative-ddtree-verify-tokens", "9")
    with serve("DDTREE", 16, *flags) as server:
        for at_once in (1, 2, 8):
            answers = ask_all(server.url, PROMPTS, at_once, **options)
            assert [answer["output_ids"] for answer in answers] == expected
        rounds = rounds_of(server.trace)
    seen = {one["batch_size"]: one["num_nodes"] for one in rounds}
    assert seen[1] == 9
    assert seen[2] == 3
    assert seen[8] == 1
    assert all(one["draft_ms"] == 0 for one in rounds if one["num_nodes"] == 1)
    assert any(max(one["commit_lens"]) > 1 for one in rounds if one["num_nodes"] > 1)
