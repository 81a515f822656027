"""Self-generated data is the target's own greedy text behind its own chat template, and a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.data.completers import Sampling
from ddtree_sglang.training.data.conversations import load_conversations
from ddtree_sglang.training.data.self_generation import GenerationPlan, generate_conversations
from tests.training.tiny import save_tiny_target, tiny_target


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


class ScriptedCompleter:
    """User turns of one word, and as many answers of use per batch as the script says; counts its batches."""

    end_ids = (2,)

    def __init__(self, usable: list[int]) -> None:
        self.usable, self.batches, self.samplings = usable, 0, list[Sampling]()

    def complete(self, prompts: list[list[int]], _new_tokens: int, sampling: Sampling) -> list[list[int]]:
        if prompts[0][-3:] != [2, 3, 4]:  # no answer header: user turns
            return [[int(torch.randint(10, 90, ()))] for _ in prompts]
        count = self.usable[self.batches]
        self.batches += 1
        self.samplings.append(sampling)
        return [[8, 9] if row < count else [2] for row in range(len(prompts))]


def _scripted(folder: Path, path: Path, usable: list[int], **plan: Any) -> ScriptedCompleter:
    completer = ScriptedCompleter(usable)
    generate_conversations(completer, AutoTokenizer.from_pretrained(folder), path, GenerationPlan(batch=4, **plan))
    return completer


def test_batches_of_no_use_are_passed_over_but_not_for_ever(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    assert _scripted(folder, data, [0, 4, 0, 0, 0, 0, 2], conversations=6).batches == 7
    assert len(load_conversations(data)) == 6
    with pytest.raises(ValueError, match=r"5 batches of 4 in succession had no user turn with an answer of two tokens"):
        _scripted(folder, tmp_path / "none.npz", [0] * 9, conversations=1)
    assert not (tmp_path / "none.npz").exists()


def test_a_batch_of_no_use_is_not_asked_for_again(folder: Path, tmp_path: Path) -> None:
    """The prompts behind it are those of the next batch."""
    _scripted(folder, tmp_path / "straight.npz", [4, 4], conversations=8)
    _scripted(folder, tmp_path / "gap.npz", [0, 4], conversations=4)
    straight, gap = (load_conversations(tmp_path / name) for name in ("straight.npz", "gap.npz"))
    assert [gap.prompt_digest(i) for i in range(4)] == [straight.prompt_digest(i) for i in range(4, 8)]


def test_every_answer_is_marked_and_the_share_does_not_drift_over_restarts(folder: Path, tmp_path: Path) -> None:
    """Every fourth batch is sampled, though one row in four comes to nothing and the run stops after every batch."""
    data, sampled = tmp_path / "data.npz", []
    for batch in range(8):
        completer = _scripted(folder, data, [3], conversations=3 * (batch + 1), sampled_share=0.25)
        sampled += [sampling.temperature > 0 for sampling in completer.samplings]
    assert sampled == [False, False, False, True] * 2
    held = load_conversations(data)
    assert held.sampled is not None
    assert held.sampled.tolist() == [int(mark) for mark in sampled for _ in range(3)]
    assert held.head(4).sampled.tolist() == [0] * 4


def test_rows_of_an_older_file_stay_unmarked(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    _scripted(folder, data, [4], conversations=4)
    with np.load(data) as arrays:
        old = {name: value for name, value in arrays.items() if name not in ("sampled", "attempted")}
    np.savez(data, **old)
    digest = load_conversations(data).digest()
    _scripted(folder, data, [4], conversations=8)
    held = load_conversations(data)
    assert held.sampled is not None
    assert held.sampled.tolist() == [-1] * 4 + [0] * 4
    assert held.head(4).digest() == digest  # so that features computed for it are still of use


def test_complete_data_needs_no_chat_template_and_missing_data_says_so(folder: Path, tmp_path: Path) -> None:
    data, tokenizer = tmp_path / "data.npz", AutoTokenizer.from_pretrained(folder)
    _scripted(folder, data, [4], conversations=4)
    tokenizer.chat_template = None
    generate_conversations(ScriptedCompleter([]), tokenizer, data, GenerationPlan(conversations=4))
    with pytest.raises(ValueError, match=rf"add one, or let {data} hold 5 conversations from elsewhere"):
        generate_conversations(ScriptedCompleter([]), tokenizer, data, GenerationPlan(conversations=5))
