"""Answers behind pictures are plain decoding's, of a tiny random target with the vision part of Qwen3-VL.

A picture takes fewer positions than it has places in a prompt, so every node of a tree behind one stands at another
position than its index says, and in a batch each request has a difference of its own. SGLang's chain is asked, too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from deploy.local.client import post
from tests.device_lane.pairs import greedy, random_prompts
from tests.e2e.asking import rounds_of
from tests.e2e.servers import Pair, Server
from tests.e2e.serving import Serve, Wanted
from tests.support.image_pair import MARKS, PICTURE, make_image_pair, picture

BUDGET = 16
# SGLang's own first request to a target that sees needs a chat template.
FLAGS = ("--skip-server-warmup",)
SQUARE, OTHER, WIDE, LARGE = picture(4, 4, 1), picture(4, 4, 2), picture(6, 3, 3), picture(8, 6, 4)
PLACES = {SQUARE: 16, OTHER: 16, WIDE: 18, LARGE: 48}


@dataclass(frozen=True)
class Asked:
    """A prompt with a `PICTURE` in the place of each of its pictures."""

    ids: tuple[int, ...]
    pictures: tuple[str, ...] = ()
    num_tokens: int = 16
    bias: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Of the prompt, with all places of its pictures."""
        return len(self.ids) + sum(PLACES[one] - 1 for one in self.pictures)

    def body(self) -> dict[str, Any]:
        """Of the request."""
        sampling = {"temperature": 0.0, "max_new_tokens": self.num_tokens, "ignore_eos": True, "logit_bias": self.bias}
        return {"input_ids": self.ids, "image_data": list(self.pictures) or None, "sampling_params": sampling}


def words(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random_prompts(1, count, seed)[0].tolist())


ONE = Asked((*words(4, 0), *PICTURE, *words(3, 1)), (SQUARE,))
ALONE = (
    ONE,
    Asked(ONE.ids, (OTHER,)),
    Asked((*words(2, 2), *PICTURE, *words(3, 3), *PICTURE, *words(5, 4)), (WIDE, SQUARE)),
    Asked((*words(5, 5), *PICTURE, *words(5, 6)), (LARGE,), num_tokens=64),
    # Its answer begins pictures where there are none.
    Asked(ONE.ids, (SQUARE,), bias={str(MARKS["vision_start"]): 50.0}),
)
# Long enough to be there yet when a busy machine has looked at the pictures of the two others.
TEXT = Asked(words(9, 7), num_tokens=64)
AT_ONCE = (TEXT, Asked((*PICTURE, *words(9, 8)), (LARGE,)), Asked((*words(2, 9), *PICTURE, *words(1, 10)), (WIDE,)))


def ask(server: Server, asked: tuple[Asked, ...], at_once: int = 1) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda one: post(server.url, "/generate", one.body()), asked))
    assert [one["meta_info"]["prompt_tokens"] for one in answers] == [one.length for one in asked]
    return answers


def ask_all(server: Server) -> list[dict[str, Any]]:
    """One at a time, in a batch, and two that go on behind a picture and an answer that are in the prefix cache."""
    answers = [*ask(server, AT_ONCE, at_once=len(AT_ONCE)), *ask(server, ALONE)]
    begun = (*ONE.ids, *answers[len(AT_ONCE)]["output_ids"])
    turns = Asked((*begun, *words(3, 11)), (SQUARE,)), Asked((*begun, *PICTURE, *words(2, 12)), (SQUARE, WIDE))
    further = ask(server, turns)
    assert all(one["meta_info"]["cached_tokens"] > ONE.length for one in further)
    return [*answers, *further]


def test_answers_behind_pictures_are_plain_decodings(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = make_image_pair(tmp_path_factory.mktemp("sees"))
    pair = Pair(made.model, made.draft)
    servers = (
        Wanted(None, None, FLAGS, pair),
        Wanted("DDTREE", BUDGET, FLAGS, pair),
        Wanted("DDTREE", BUDGET, (*FLAGS, "--speculative-ddtree-ngrams"), pair),
        Wanted("DFLASH", None, FLAGS, pair),
    )
    with serve.together(*servers) as ready:
        found = [ask_all(server) for server in ready]
    plain, *others = ([one["output_ids"] for one in answers] for answers in found)
    assert others == [plain] * len(others)
    assert plain[0] == greedy(made.target, torch.tensor([TEXT.ids]), TEXT.num_tokens)[0, len(TEXT.ids) :].tolist()
    assert plain[len(AT_ONCE)] != plain[len(AT_ONCE) + 1], "an answer hangs on its picture"
    assert max(one["batch_size"] for one in rounds_of(ready[1].trace)) == len(AT_ONCE)
    tree, _, chain = ([one["meta_info"]["spec_verify_ct"] for one in answers] for answers in found[1:])
    assert all(rounds < len(ids) for rounds, ids in zip(tree, plain, strict=True)), "nodes below the root are accepted"
    assert sum(tree) < sum(chain)
