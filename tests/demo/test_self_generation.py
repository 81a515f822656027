"""Self-generated data is the target's own greedy text behind its own chat template, and a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import save_tiny_target, tiny_target

from ddtree_sglang.demo.conversations import load_conversations
from ddtree_sglang.demo.self_generation import GenerationPlan
from ddtree_sglang.demo.train_drafter import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


def _generate(folder: Path, data: Path, conversations: int, sampled_share: float = 0) -> int:
    flags = ["--target", str(folder), "--data", str(data), "--work", str(data.parent), "--threads", "1"]
    size = ["--conversations", str(conversations), "--generation-batch", "6", "--max-tokens", "90", "--float32"]
    size += ["--sampled-share", str(sampled_share)]
    return main(["generate", *flags, *size])


def test_answers_are_greedy_and_prompts_follow_the_template(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    assert _generate(folder, data, 6) == 0
    held = load_conversations(data)
    assert len(held) >= 6
    target = tiny_target()
    for index in range(len(held)):
        ids, start = held.token_ids(index), int(held.answer_start[index])
        assert ids[:2].tolist() == [7, 1]  # the template's text before the user's message
        assert ids[start - 3 : start].tolist() == [2, 3, 4]  # and after it
        with torch.inference_mode():
            greedy = target(ids[None]).logits[0].argmax(-1)
        assert torch.equal(greedy[start - 1 : -1], ids[start:])
        assert 2 not in ids[start:-1].tolist()  # nothing after the end token


def test_second_run_keeps_what_the_first_one_made(folder: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.npz", tmp_path / "twice.npz"
    assert _generate(folder, once, 12) == 0
    assert _generate(folder, twice, 6) == 0
    first = load_conversations(twice).tokens
    assert _generate(folder, twice, 12) == 0
    grown = load_conversations(twice)
    assert torch.equal(grown.tokens[: len(first)], first)
    assert grown.digest() == load_conversations(once).digest()


def test_a_share_of_the_batches_is_answered_at_temperature_one(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "mixed.npz"
    assert _generate(folder, data, 12, sampled_share=0.5) == 0
    held, target = load_conversations(data), tiny_target()
    agreement = []
    for index in range(len(held)):
        ids, start = held.token_ids(index), int(held.answer_start[index])
        with torch.inference_mode():
            greedy = target(ids[None]).logits[0].argmax(-1)
        agreement.append(torch.equal(greedy[start - 1 : -1], ids[start:]))
    assert all(agreement[:6])
    assert sum(agreement[6:]) < len(agreement[6:]) / 2


def test_sampled_batches_are_spread_evenly() -> None:
    plan = GenerationPlan(conversations=1, sampled_share=0.25)
    assert [plan.is_sampled(number) for number in range(8)] == [False, False, False, True] * 2
    with pytest.raises(ValueError, match="share of sampled answers must be 0 to 1"):
        GenerationPlan(conversations=1, sampled_share=1.5)
