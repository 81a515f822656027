"""The device lane's reference and the CPU platform agree: the same tokens, and the same number accepted round by round.

The reference is plain torch without batches or a cache (tests/device_lane/references.py). What it expects of a server
here, the lane expects of the device path.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.local.client import post
from tests.device_lane.convolved_drafter import with_convolutions
from tests.device_lane.gated_drafter import with_gates
from tests.device_lane.pair_heads import (
    with_gated_markov,
    with_lattice,
    with_markov,
    with_markov_from_the_anchor,
    with_markov_of_lfm2,
    with_selector,
)
from tests.device_lane.pairs import TinyPair, make_pair, one_thread, random_prompts
from tests.device_lane.references import Asked, Reference, histogram
from tests.device_lane.sliding_drafter import FULL, SLIDING
from tests.e2e.servers import Pair
from tests.support.drafter_parts import state_parts
from tests.support.drafters import ALIASES

NUM_NODES = 17
NUM_REQUESTS = 10


WINDOW = ("--speculative-draft-window-size", "6", "--page-size", "4")
"""A drafter that sees six tokens and up to three more, on a page's edge."""


NGRAMS = ("--speculative-ddtree-ngrams",)


def named(name: str) -> Callable[[TinyPair], TinyPair]:
    """A pair whose drafter is stored by another name of its class."""
    other, architecture = ALIASES[name]

    def head(pair: TinyPair) -> TinyPair:
        pair = HEADS[other](pair)
        state_parts(Path(pair.draft), architectures=[architecture])
        return pair

    return head


HEADS: dict[str, Callable[[TinyPair], TinyPair]] = {
    "DFlash": lambda pair: pair,
    "DFlash2 (selector)": with_selector,
    "DSpark, vanilla Markov head": with_markov_from_the_anchor,
}
DSPARK = (with_markov, with_gated_markov, with_markov_from_the_anchor, with_markov_of_lfm2)


@pytest.mark.parametrize(
    ("algorithm", "block_size", "kinds", "head", "flags"),
    [
        pytest.param("DDTREE", 4, (FULL,), None, (), id="DDTREE-4"),
        pytest.param("DDTREE", 4, (FULL,), with_gated_markov, (), id="gated-markov"),
        pytest.param("DDTREE", 4, (FULL,), with_markov, (), id="markov"),
        # As DSpark's drafters are published: what they leave out means so.
        pytest.param("DDTREE", 4, (FULL,), with_markov_from_the_anchor, (), id="markov-anchor"),
        pytest.param("DDTREE", 4, (FULL,), with_markov_of_lfm2, (), id="markov-lfm2"),
        pytest.param("DDTREE", 4, (FULL,), with_lattice, (), id="lilicorr"),
        # As DFlash2's drafters are published.
        pytest.param(
            "DDTREE", 4, (FULL,), lambda pair: with_convolutions(with_selector(pair)), (), id="selector-convolutions"
        ),
        pytest.param("DDTREE", 4, (FULL,), with_gates, (), id="gates"),
        pytest.param(
            "DDTREE",
            4,
            (FULL,),
            lambda pair: with_gates(pair, "per-element"),
            (),
            id="gates-per-element",
            marks=pytest.mark.slow,
        ),
        pytest.param("DDTREE", 4, (FULL,), None, NGRAMS, id="ngrams"),
        pytest.param("DFLASH", 8, (FULL,), None, (), id="DFLASH-8"),
        pytest.param("DDTREE", 4, (SLIDING, FULL), None, WINDOW, id="window"),
        *(
            pytest.param("DDTREE", 4, (FULL,), named(name), (), id=architecture, marks=pytest.mark.slow)
            for name, (_, architecture) in ALIASES.items()
        ),
    ],
)
def test_rounds_of_a_tiny_pair(
    algorithm: str,
    block_size: int,
    kinds: tuple[str, ...],
    head: Callable[[TinyPair], TinyPair] | None,
    flags: tuple[str, ...],
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pair = make_pair(tmp_path_factory.mktemp("tiny"), "qwen3", block_size, kinds=kinds)
    pair = pair if head is None else head(pair)
    reference = Reference(pair).of_server(flags)
    with one_thread():
        prompts = [tuple(random_prompts(1, 3 + i % 10, i)[0].tolist()) for i in range(2 * NUM_REQUESTS)]
        # Said three times, a prompt has something to say of what follows what.
        candidates = [Asked(3 * prompt if flags == NGRAMS else prompt, 14) for prompt in prompts]
        requests = [asked for asked in candidates if reference.is_clear(asked, (NUM_NODES,))][:NUM_REQUESTS]
        rounds = [
            reference.rounds(asked, NUM_NODES) if algorithm == "DDTREE" else reference.chain_rounds(asked)
            for asked in requests
        ]
    assert len(requests) == NUM_REQUESTS
    if head in DSPARK:
        # Of as many depths as the checkpoint's block_size says, the last one gives a token.
        assert max(one.commit_len for of_one in rounds for one in of_one) == pair.max_path_len
    budget = NUM_NODES - 1 if algorithm == "DDTREE" else None
    with (
        serve(algorithm, budget, *flags, pair=Pair(pair.model, pair.draft)) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = list(pool.map(lambda asked: post(server.url, "/generate", asked.body()), requests))
    for asked, expected, answer in zip(requests, rounds, answers, strict=True):
        assert answer["output_ids"] == list(reference.expect(asked).output_ids)
        assert answer["meta_info"]["spec_verify_ct"] == len(expected)
        assert answer["meta_info"]["spec_correct_drafts_histogram"] == histogram(expected)
