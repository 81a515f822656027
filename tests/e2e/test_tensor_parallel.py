"""Tensor parallelism over gloo: ranks build equal trees (checked in every round), and tokens are plain decoding's.

Two ranks serve a tiny random Qwen3, three serve the embedded model, whose three KV heads leave no other choice. Plain
decoding runs at the same number of ranks: an all-reduce adds in another order than a single rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.e2e.asking import PROMPTS, ask, ask_all
from tests.e2e.servers import Pair
from tests.training.tiny import SHAPE, VOCABULARY, save_tokenizer, tiny_config

TINY_PROMPTS = [[token, token + 1, 2 * token % VOCABULARY] for token in range(5, 45, 5)]


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights: a four-layer Qwen3 and a two-layer drafter for it, over a vocabulary of 97."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=96,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **SHAPE,
    )
    target = Qwen3ForCausalLM(config)
    target.save_pretrained(folder / "target")
    save_tokenizer(folder / "target")
    export_drafter(DFlashDrafter(tiny_config(target)), folder / "draft", torch.float32)
    write_manifest(folder / "draft")
    return Pair(str(folder / "target"), str(folder / "draft"))


WORDS = {"regex": "((w5|w6|w8)(w4|w7|w9))+", "max_new_tokens": 24}
"""A grammar of the tiny one's words."""


def check_ranks(serve: Callable[..., Any], ranks: int, prompts: Any, new_tokens: int, pair: Pair | None) -> None:
    tp = ("--tp-size", str(ranks))
    options = {"max_new_tokens": new_tokens, "ignore_eos": True}
    with serve(None, None, *tp, pair=pair) as plain:
        expected = [answer["output_ids"] for answer in ask_all(plain.url, prompts, 4, **options)]
        under_a_grammar = ask(plain.url, prompts[0], **WORDS)["output_ids"] if pair else None
    with serve("DDTREE", 12, *tp, "--speculative-ddtree-check-ranks", pair=pair) as server:
        answers = ask_all(server.url, prompts, 4, **options)
        # Each rank walks the grammar on its own.
        assert pair is None or ask(server.url, prompts[0], **WORDS)["output_ids"] == under_a_grammar
    assert [answer["output_ids"] for answer in answers] == expected
    rounds = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    # A random drafter is right now and then, because the tree tries twelve of 97 tokens.
    assert rounds < new_tokens * len(prompts)


def test_two_ranks_of_a_tiny_qwen3(serve: Callable[..., Any], tiny_qwen3: Pair) -> None:
    check_ranks(serve, 2, TINY_PROMPTS, 40, tiny_qwen3)


def test_three_ranks_of_the_embedded_model(serve: Callable[..., Any]) -> None:
    check_ranks(serve, 3, PROMPTS[:4], 24, None)
