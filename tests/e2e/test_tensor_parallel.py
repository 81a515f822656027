"""Tensor parallelism over gloo: ranks build equal trees (checked in every round), and tokens are plain decoding's.

Two ranks serve a tiny random Qwen3 with LoRA adapters, three serve the embedded model, whose three KV heads leave no
other choice. Plain decoding runs at the same number of ranks: an all-reduce adds in another order than a single rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane.adapters import flags_of, make_adapters
from tests.device_lane.pairs import TinyPair
from tests.e2e.asking import PROMPTS, ask
from tests.e2e.servers import Pair
from tests.training.tiny import SHAPE, VOCABULARY, save_tokenizer, tiny_config

TINY_PROMPTS = [[token, token + 1, 2 * token % VOCABULARY] for token in range(5, 45, 5)]


@dataclass(frozen=True)
class Asked:
    """A request: its prompt, and what it asks for besides."""

    prompt: str | list[int]
    body: dict[str, Any]
    sampling: dict[str, Any]


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, tuple[str, ...]]:
    """Random weights: a four-layer Qwen3, a two-layer drafter for it and two adapters, over a vocabulary of 97.

    Blocks of 32 divide each rank's half of the intermediate size, so that SGLang pads none of it.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **SHAPE,
    )
    target = Qwen3ForCausalLM(config)
    drafter = DFlashDrafter(tiny_config(target))
    pair = TinyPair(target, drafter, str(folder / "target"), str(folder / "draft"))
    target.save_pretrained(pair.model)
    save_tokenizer(folder / "target")
    export_drafter(drafter, folder / "draft", torch.float32)
    write_manifest(folder / "draft")
    return Pair(pair.model, pair.draft), flags_of(make_adapters(pair, folder, {"first": 4, "second": 8}))


def check_ranks(
    serve: Callable[..., Any],
    ranks: int,
    asked: Sequence[Asked],
    pair: Pair | None,
    *flags: str,
    own: Sequence[str] = (),
    policy: str = "fixed",
) -> list[dict[str, Any]]:
    """DDTREE's answers, whose tokens and hidden states are plain decoding's at the same number of ranks.

    `own`: flags that plain decoding has not; `policy`: of DDTREE's budget.
    """
    tp = ("--tp-size", str(ranks), "--enable-return-hidden-states", *flags)

    def answers(url: str) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda one: ask(url, one.prompt, body=one.body, **one.sampling), asked))

    with serve(None, None, *tp, pair=pair) as plain:
        expected = answers(plain.url)
    # Each rank walks the grammars on its own.
    with serve("DDTREE", 12, *tp, *own, "--speculative-ddtree-check-ranks", pair=pair, policy=policy) as server:
        found = answers(server.url)
    for one, mine, reference in zip(asked, found, expected, strict=True):
        assert mine["output_ids"] == reference["output_ids"], one
        states, wanted = (answer["meta_info"].get("hidden_states", []) for answer in (mine, reference))
        assert len(states) == len(wanted)
        for row, other in zip(states, wanted, strict=True):
            assert torch.allclose(torch.tensor(row), torch.tensor(other), atol=1e-3), one
    return found


def rounds_of(answers: Sequence[dict[str, Any]]) -> int:
    return sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)


def test_two_ranks_of_a_tiny_qwen3(serve: Callable[..., Any], tiny_qwen3: tuple[Pair, tuple[str, ...]]) -> None:
    """The base model and its adapters, one of which changes the embedding, in one batch, and a grammar."""
    pair, adapters = tiny_qwen3
    long = {"max_new_tokens": 40, "ignore_eos": True}
    bodies: list[dict[str, Any]] = [{}, {"lora_path": "first"}, {"lora_path": "second"}, {"return_hidden_states": True}]
    asked = [Asked(prompt, bodies[index % 4], long) for index, prompt in enumerate(TINY_PROMPTS)]
    asked += [Asked(TINY_PROMPTS[0], body, long) for body in bodies[1:3]]
    asked += [Asked(TINY_PROMPTS[0], {}, {"regex": "((w5|w6|w8)(w4|w7|w9))+", "max_new_tokens": 24})]
    flags = (*adapters, "--max-loras-per-batch", "3", "--max-lora-rank", "8")
    answers = check_ranks(serve, 2, asked, pair, *flags)
    assert answers[3]["meta_info"]["hidden_states"]
    same_prompt = [answers[0], *answers[len(TINY_PROMPTS) : -1]]
    assert len({tuple(answer["output_ids"]) for answer in same_prompt}) == 3, "adapters change nothing"
    # A random drafter is right now and then, because the tree tries twelve of 97 tokens.
    assert rounds_of(answers[: len(TINY_PROMPTS)]) < 40 * len(TINY_PROMPTS)


def test_three_ranks_of_the_embedded_model(serve: Callable[..., Any]) -> None:
    """Among them one under a grammar, with the hidden states of its tokens; one rank's clock chooses the nodes."""
    asked = [Asked(prompt, {}, {"max_new_tokens": 24, "ignore_eos": True}) for prompt in PROMPTS[:4]]
    asked += [Asked(PROMPTS[2], {"return_hidden_states": True}, {"regex": r"( [a-z]+){9}\.", "max_new_tokens": 30})]
    own = ("--speculative-ddtree-measure-seconds", "3")
    answers = check_ranks(serve, 3, asked, None, own=own, policy="adaptive")
    assert len(answers[-1]["meta_info"]["hidden_states"]) == len(answers[-1]["output_ids"])
    assert rounds_of(answers) < sum(len(answer["output_ids"]) for answer in answers)
