"""Routed experts of an answer: a plain server's, token by token, on a tiny random mixture of experts.

Plain torch says which they are, too. What a node that was not accepted chose must not be among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deploy.local.client import post
from tests.device_lane.pairs import make_pair, one_thread, random_prompts
from tests.device_lane.references import Asked, Reference, experts_of, histogram
from tests.e2e.servers import Pair, Server
from tests.e2e.serving import Serve

NUM_NODES = 17
Setting = tuple[Reference, list[Asked], Server, Server]


@pytest.fixture(scope="module")
def setting(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    pair = make_pair(tmp_path_factory.mktemp("experts"), "qwen3_moe", block_size=4)
    reference = Reference(pair)
    prompts = (tuple(random_prompts(1, 3 + seed % 10, seed)[0].tolist()) for seed in range(100))
    with one_thread():
        found = (asked for prompt in prompts if reference.is_clear(asked := Asked(prompt, 14), (NUM_NODES,)))
        requests = [next(found) for _ in range(8)]
    models, flags = Pair(pair.model, pair.draft), ("--enable-return-routed-experts",)
    with serve.both(NUM_NODES - 1, *flags, pair=models) as (plain, ddtree):
        yield reference, requests, plain, ddtree


def ask_all(server: Server, requests: list[Asked], **body: Any) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda asked: post(server.url, "/generate", {**asked.body(), **body}), requests))


@pytest.mark.parametrize("cached", [False, True])
def test_experts_are_plain_decodings(cached: bool, setting: Setting) -> None:
    """In batches of four; the second time prompts and answers are in the prefix cache."""
    reference, requests, plain, ddtree = setting
    by_server = [ask_all(server, requests, return_routed_experts=True) for server in (plain, ddtree)]
    assert any(answer["meta_info"]["cached_tokens"] > 0 for answer in by_server[1]) >= cached
    for asked, theirs, ours in zip(requests, *by_server, strict=True):
        assert ours["output_ids"] == theirs["output_ids"] == list(reference.expect(asked).output_ids)
        assert ours["meta_info"]["spec_correct_drafts_histogram"] == histogram(reference.rounds(asked, NUM_NODES))
        assert torch.equal(experts_of(ours), experts_of(theirs))
        assert torch.equal(experts_of(ours), reference.experts(asked))


def test_experts_from_a_token_on_and_none_for_those_who_ask_for_none(setting: Setting) -> None:
    reference, requests, _, ddtree = setting
    asked, other = requests[:2]
    body = {**asked.body(), "return_routed_experts": True, "routed_experts_start_len": len(asked.prompt)}
    answers = ask_all(ddtree, [other]), post(ddtree.url, "/generate", body)
    assert answers[0][0]["meta_info"].get("routed_experts") is None
    assert torch.equal(experts_of(answers[1]), reference.experts(asked)[len(asked.prompt) :])
