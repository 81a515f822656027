"""Quantized targets and drafters on the CPU platform: tokens and rounds are those of the values that are stored."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deploy.local.client import post
from tests.device_lane.pairs import one_thread, random_prompts
from tests.device_lane.references import Asked, Reference, histogram
from tests.e2e.servers import Pair
from tests.support.published import PAIRS
from tests.support.quantize import How, quantize
from tests.support.tiny import make_tiny

NUM_NODES = 17
NUM_REQUESTS = 4


@pytest.mark.parametrize(("target", "drafter"), [("fp8", "fp8-blocks"), ("w8a8_int8", "fp8")])
def test_answers_and_rounds_are_those_of_the_stored_values(
    target: How, drafter: How, serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = make_tiny(tmp_path_factory.mktemp("quantized"), PAIRS["Qwen3-8B"])
    before = Reference(pair)
    prompts = [tuple(random_prompts(1, 4 + seed % 7, seed)[0].tolist()) for seed in range(100)]
    with one_thread():
        plain = [before.expect(Asked(prompt, 12)).output_ids for prompt in prompts[:20]]
        quantize(pair, target, drafter)
        reference = Reference(pair)
        asked = (Asked(prompt, 12) for prompt in prompts)
        found = (one for one in asked if reference.is_clear(one, (NUM_NODES,)))
        requests = [next(found) for _ in range(NUM_REQUESTS)]
        changed = [reference.expect(Asked(prompt, 12)).output_ids for prompt in prompts[:20]]
    assert changed != plain, "what is stored must tell from what it was made of"
    with (
        serve("DDTREE", NUM_NODES - 1, pair=Pair(pair.model, pair.draft)) as server,
        ThreadPoolExecutor(NUM_REQUESTS) as pool,
    ):
        answers = list(pool.map(lambda one: post(server.url, "/generate", one.body()), requests))
    for one, answer in zip(requests, answers, strict=True):
        assert answer["output_ids"] == list(reference.expect(one).output_ids)
        assert answer["meta_info"]["spec_correct_drafts_histogram"] == histogram(reference.rounds(one, NUM_NODES))
