"""Waves: the target's own turns behind its template, its own answers, no prompt twice and none that is scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ddtree_sglang.training.data import waves
from ddtree_sglang.training.data.completers import GREEDY, LocalCompleter
from ddtree_sglang.training.data.openings import OPENINGS
from ddtree_sglang.training.data.self_generation import SEED_PHRASES
from ddtree_sglang.training.data.waves import KnownPrompts, Wave, WaveShape, WaveWriter
from ddtree_sglang.training.model.target_forward import TargetForward
from tests.training.tiny import save_tiny_target, tiny_target

ENDS = (2, 5)
SHAPE = WaveShape(rows=40, length=70, max_user_tokens=12, sampled_rows=10)
PHRASES = ("", "w8 w9", "w10 w11 w12 w13", "w14")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(save_tiny_target(tmp_path_factory.mktemp("target")))


@pytest.fixture(autouse=True)
def _phrases_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves, "OPENINGS", PHRASES)


def _write(tokenizer: Any, known: KnownPrompts | None = None, seed: int = 0, shape: WaveShape = SHAPE) -> Wave:
    known = known or KnownPrompts(tokenizer)
    writer = WaveWriter(tokenizer, ENDS, torch.device("cpu"), (0.6, 1.0), known, seed)
    forward = TargetForward(tiny_target(), shape.length)
    memory = forward.key_memory(shape.rows, shape.length)
    return writer.write(lambda tokens, position: forward.step(tokens, position, memory, shape.length), shape)


def test_greedy_answers_are_what_the_target_generates(tokenizer: Any) -> None:
    target, wave = tiny_target(), _write(tokenizer)
    target.generation_config.eos_token_id = list(ENDS)
    completer, ended = LocalCompleter(target), 0
    for row, start, sampled in zip(wave.rows, wave.starts, wave.sampled, strict=True):
        expected = completer.complete([row[:start].tolist()], SHAPE.length - start, GREEDY)[0]
        assert (row[start:].tolist() == expected) == (not sampled)
        ended += not sampled and row[-1] in ENDS
    assert wave.sampled.count(0) > 20
    assert 0 < ended < wave.sampled.count(0)
    assert wave.num_answer_tokens == sum(len(row) - start for row, start in zip(wave.rows, wave.starts, strict=True))


def test_conversations_obey_the_template_the_limits_and_the_ends(tokenizer: Any) -> None:
    starts = [[7, 1, *tokenizer(phrase)["input_ids"]] for phrase in PHRASES]
    wave, used, longest = _write(tokenizer), set(), 0
    for row, start in zip(wave.rows, wave.starts, strict=True):
        assert row[start - 3 : start].tolist() == [2, 3, 4]
        begun = max((one for one in starts if row[: len(one)].tolist() == one), key=len)
        turn = row[len(begun) : start - 3]
        assert 1 <= len(turn) <= SHAPE.max_user_tokens
        assert not set(turn.tolist()) & set(ENDS)
        assert not set(row[start:-1].tolist()) & set(ENDS)
        assert row[-1] in ENDS or len(row) == SHAPE.length
        assert len(row) - start >= 2
        used.add(len(begun))
        longest = max(longest, len(turn))
    assert len(used) > 2
    assert longest > SHAPE.max_user_tokens // 2


def test_answers_at_temperature_one_differ_with_the_seed_and_stand_among_the_others(tokenizer: Any) -> None:
    wave = _write(tokenizer)
    assert 5 <= sum(wave.sampled) <= SHAPE.sampled_rows
    assert sum(wave.sampled[: len(wave.sampled) // 2]) not in (0, sum(wave.sampled))
    assert [row.tolist() for row in wave.rows] == [row.tolist() for row in _write(tokenizer).rows]
    assert [row.tolist() for row in wave.rows] != [row.tolist() for row in _write(tokenizer, seed=1).rows]
    none = _write(tokenizer, shape=WaveShape(40, 70, 12, 0))
    assert not any(none.sampled)


def test_drawn_tokens_follow_their_temperature(tokenizer: Any) -> None:
    writer = WaveWriter(tokenizer, ENDS, torch.device("cpu"), (0.6, 1.0), KnownPrompts(tokenizer), 0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(40_000, 4)
    for heat in (0.6, 1.0):
        drawn = writer._drawn(logits, torch.full((40_000, 1), heat)).bincount(minlength=4) / 40_000
        torch.testing.assert_close(drawn, (logits[0] / heat).softmax(-1), rtol=0, atol=0.01)


def test_a_sampled_answer_is_drawn_at_temperature_one_from_its_first_token(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While other rows still write their user turns at temperatures of their own."""
    heats, drawn = [], WaveWriter._drawn

    def watched(self: WaveWriter, logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
        heats.append(temperatures[:, 0])
        return drawn(self, logits, temperatures)

    monkeypatch.setattr(WaveWriter, "_drawn", watched)
    writer = WaveWriter(tokenizer, ENDS, torch.device("cpu"), (0.6, 0.8), KnownPrompts(tokenizer), 0)
    forward = TargetForward(tiny_target(), SHAPE.length)
    memory = forward.key_memory(SHAPE.rows, SHAPE.length)
    writer.write(lambda tokens, position: forward.step(tokens, position, memory, SHAPE.length), SHAPE)
    beside = [heat for heat in heats if len(heat) == SHAPE.rows and (heat == 1).any()]
    assert beside
    assert all(((heat >= 0.6) & (heat <= 0.8) | (heat == 1)).all() for heat in heats)
    assert all((heat == 1).all() for heat in heats[-5:])


def test_a_prompt_that_was_written_is_not_kept_again(tokenizer: Any) -> None:
    known = KnownPrompts(tokenizer)
    first = _write(tokenizer, known)
    assert first.rows
    assert _write(tokenizer, known).rows == []
    again = _write(tokenizer, known, seed=1)
    assert 0 < len(again.rows) <= SHAPE.rows
    prompts = [tuple(row[:start]) for one in (first, again) for row, start in zip(one.rows, one.starts, strict=True)]
    assert len(set(prompts)) == len(prompts)


def test_a_prompt_that_drafters_are_scored_on_is_not_kept(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = _write(tokenizer)
    taken = {i: tokenizer.decode(wave.rows[i][2 : wave.starts[i] - 3].tolist()) for i in (0, 3, 4)}
    monkeypatch.setattr(waves, "HELD_OUT_PROMPTS", {"one": (taken[0],), "other": (taken[3], taken[4])})
    found = {row.tobytes() for row in _write(tokenizer).rows}
    assert found == {row.tobytes() for i, row in enumerate(wave.rows) if i not in taken}


def test_prompts_of_the_scores_are_found_however_they_are_written(tokenizer: Any, tmp_path: Path) -> None:
    """The target may spell a prompt with other tokens than the tokenizer does."""

    class Letters:
        """A tokenizer whose ids are letters, and 1000 + n the pair of letter n."""

        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return f"<{messages[0]['content']}>"

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return ["".join(chr(i) if i < 1000 else 2 * chr(i - 1000) for i in row) for row in rows]

    known, text = KnownPrompts(Letters()), "<Why do cats purr?>"
    plain = np.array([ord(letter) for letter in text])
    paired = np.array([*plain[:-4], 1000 + ord("r"), *plain[-2:]])
    assert known.scored([plain, paired, plain[:-2]]) == [True, True, False]
    assert known.fresh([plain, plain[:-2], plain[:-2]]) == [False, True, False]


def test_a_longer_wave_takes_the_same_memory_and_openings_hold_the_seed_phrases() -> None:
    long = SHAPE.longer()
    assert (long.rows * long.length, long.max_user_tokens) == (SHAPE.rows * SHAPE.length, 4 * SHAPE.max_user_tokens)
    assert set(SEED_PHRASES) < set(OPENINGS)
    assert len(OPENINGS) > 150
