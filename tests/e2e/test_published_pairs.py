"""Tiny random pairs with the structure of the published ones that are served: chain and tree answer as plain decoding.

Plain decoding is Hugging Face's forward in plain torch, which also says what each round accepts. Batches of three, a
second wave that finds the first one's prompts in the prefix cache, a server with trees of 7 nodes besides the root and
one with 16, where the first wave allows itself 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from deploy.local.client import post
from tests.device_lane.pairs import one_thread, random_prompts
from tests.device_lane.references import Asked, Reference, histogram
from tests.e2e.asking import rounds_of
from tests.e2e.servers import Pair, Server
from tests.e2e.serving import Serve, Wanted
from tests.support.published import PAIRS, SERVED
from tests.support.tiny import make_tiny

BUDGET, SMALL = 16, 7
BATCH = 3
NUM_TOKENS = 12


def clear_requests(reference: Reference, prompts: Iterator[tuple[int, ...]], budget: int, count: int) -> list[Asked]:
    """Some that rounding cannot change."""
    asked = (Asked(prompt, NUM_TOKENS, budget=budget) for prompt in prompts)
    found = (one for one in asked if reference.is_clear(one, (BUDGET + 1, SMALL + 1)))
    return [next(found) for _ in range(count)]


def waves(reference: Reference) -> list[list[Asked]]:
    """Three requests, and three whose prompts are those with their answers and more."""
    with one_thread():
        first = clear_requests(
            reference, (tuple(random_prompts(1, 5 + seed % 7, seed)[0].tolist()) for seed in range(100)), SMALL, BATCH
        )
        longer = [(*one.prompt, *reference.expect(one).output_ids) for one in first]
        second = []
        for index, prompt in enumerate(longer):
            prompts = ((*prompt, *random_prompts(1, 3, 50 * index + seed)[0].tolist()) for seed in range(50))
            second += clear_requests(reference, prompts, BUDGET, 1)
        return [first, second]


def answers(server: Server, wave: list[Asked]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(BATCH) as pool:
        return list(pool.map(lambda asked: post(server.url, "/generate", asked.body()), wave))


@pytest.mark.parametrize("name", SERVED)
def test_chain_and_tree_are_plain_decoding(name: str, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = make_tiny(tmp_path_factory.mktemp("pair"), PAIRS[name])
    reference = Reference(pair)
    asked = waves(reference)
    models = Pair(pair.model, pair.draft)
    own = [[replace(one, budget=None) for one in wave] for wave in asked]
    wanted = Wanted("DDTREE", BUDGET, pair=models), Wanted("DDTREE", SMALL, pair=models), Wanted("DFLASH", pair=models)
    with serve.together(*wanted) as (tree, small, chain):
        by_chain = [answers(chain, wave) for wave in own]
        by_tree = [answers(tree, wave) for wave in asked]
        by_small = [answers(small, wave) for wave in own]
        batches = [{len(line["request_ids"]) for line in rounds_of(server.trace)} for server in (tree, small)]
    for sent, answered, budget in ((asked, by_tree, BUDGET), (own, by_small, SMALL)):
        moves = []
        for wave, mine, stock in zip(sent, answered, by_chain, strict=True):
            for one, answer, chained in zip(wave, mine, stock, strict=True):
                expected, rounds = reference.expect(one), reference.rounds(one, budget + 1)
                assert answer["output_ids"] == chained["output_ids"] == list(expected.output_ids)
                assert answer["meta_info"]["spec_correct_drafts_histogram"] == histogram(rounds)
                moves += [one.moves for one in rounds]
        assert any(moves)
    assert all(
        answer["meta_info"]["cached_tokens"] > 0 for waves in (by_tree, by_small, by_chain) for answer in waves[1]
    )
    assert all(BATCH in sizes for sizes in batches), batches
