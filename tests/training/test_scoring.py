"""Scoring by kind: the target's own greedy answers, kept and reused, and a table of every kind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.data.conversations import load_conversations
from ddtree_sglang.training.data.held_out_prompts import HELD_OUT_PROMPTS
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, load_drafter
from ddtree_sglang.training.score.calibration import ReliabilityCounter
from ddtree_sglang.training.score.evaluation import DraftScore, Evaluation
from ddtree_sglang.training.score.scoring import KindScore, answer_prompts, score_table
from ddtree_sglang.training.stages import evaluate
from tests.training.tiny import save_tiny_target, tiny_config, tiny_target

PROMPTS = {"short": ("w5 w6", "w8"), "long": ("w9 w10 w11 w12 w13 w14",)}


def test_what_pairs_add_is_told_by_kind_beside_its_interval() -> None:
    counter = ReliabilityCounter(2)
    tokens = (40, 60, 50)
    by_positions = DraftScore(tokens, (20, 30, 25))
    scores = {"chain": by_positions, "tree8": by_positions, "pairs8": DraftScore(tokens, (16, 24, 20))}
    kind = KindScore("code", Evaluation(scores, counter))
    assert kind.record()["gains_of_pairs"] == {"8": [0.5, 0.5, 0.5]}
    assert "| code | +0.500 (+0.500 to +0.500) |" in score_table([kind])
    plain = KindScore("code", Evaluation({"chain": by_positions, "tree8": by_positions}, counter))
    assert "pairs" not in score_table([plain])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


def test_there_are_twenty_prompts_of_each_of_four_kinds_and_none_twice() -> None:
    assert [len(messages) for messages in HELD_OUT_PROMPTS.values()] == [20] * 4
    everything = [message for messages in HELD_OUT_PROMPTS.values() for message in messages]
    assert len(set(everything)) == len(everything)


def test_answers_are_greedy_whatever_the_padding_and_are_kept(folder: Path, tmp_path: Path) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(folder), tmp_path / "answers.npz"
    target = tiny_target()
    held, kinds = answer_prompts(target, tokenizer, PROMPTS, path, max_new_tokens=12)
    assert kinds == ["short", "short", "long"]
    for index in range(len(held)):
        ids, start = held.token_ids(index), int(held.answer_start[index])
        with torch.inference_mode():
            greedy = target(ids[None]).logits[0].argmax(-1)
        assert torch.equal(greedy[start - 1 : -1], ids[start:])
    again, _ = answer_prompts(None, tokenizer, PROMPTS, path)  # no target: nothing is answered twice
    assert again.digest() == held.digest()
    with pytest.raises(ValueError, match="answers to these prompts"):
        answer_prompts(target, tokenizer, {"other": ("w1",)}, path)


def test_answers_of_another_target_are_refused_and_older_ones_used_with_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(folder), tmp_path / "answers.npz"
    answer_prompts(tiny_target(), tokenizer, PROMPTS, path, max_new_tokens=12, fingerprint="one float32")
    answer_prompts(None, tokenizer, PROMPTS, path, fingerprint="one float32")
    assert "does not say" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="of this target, 'two float32'; it has those of 'one float32': remove it"):
        answer_prompts(None, tokenizer, PROMPTS, path, fingerprint="two float32")
    with np.load(path) as arrays:
        np.savez(path, **{name: value for name, value in arrays.items() if name != "target"})
    answer_prompts(None, tokenizer, PROMPTS, path, fingerprint="two float32")
    assert "does not say which target answered" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{path} must be an .npz file of conversations, it is damaged"):
        answer_prompts(None, tokenizer, PROMPTS, path)


@pytest.mark.parametrize("damage", ["config", "field", "weights"])
def test_a_damaged_drafter_says_so(tmp_path: Path, damage: str) -> None:
    draft = export_drafter(DFlashDrafter(tiny_config(tiny_target())), tmp_path, torch.float32)
    if damage == "config":
        (draft / "config.json").write_text("{")
    elif damage == "field":
        config = json.loads((draft / "config.json").read_text())
        del config["head_dim"]
        (draft / "config.json").write_text(json.dumps(config))
    else:
        (draft / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=rf"{draft}.*(is damaged|must have the field 'head_dim').*export"):
        load_drafter(draft)


def test_an_exported_drafter_is_scored_by_kind_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "HELD_OUT_PROMPTS", PROMPTS)
    draft = export_drafter(DFlashDrafter(tiny_config(tiny_target())), tmp_path / "draft", torch.float32)
    flags = ["--target", str(folder), "--work", str(tmp_path / "work"), "--threads", "1", "--float32"]
    results = tmp_path / "results" / "scores.jsonl"
    flags += ["--draft", str(draft), "--prompts", "by-kind", "--results", str(results)]
    assert main(["evaluate", *flags]) == 0
    printed = capsys.readouterr().out
    records = {one["kind"]: one for one in map(json.loads, (x for x in printed.splitlines() if x.startswith("{")))}
    assert list(records) == ["short", "long", "all"]
    assert records["all"]["conversations"] == 3
    low, high = records["all"]["interval_95"]["tree32"]
    assert 1 <= low <= records["all"]["tree32"] <= high
    assert records["all"]["tree64"] >= records["all"]["tree8"] >= 1
    assert "| short | " in printed
    assert "| depth | confidence |" in printed
    _assert_results(results, records, draft, printed)


def _assert_results(path: Path, records: dict[str, dict[str, Any]], draft: Path, printed: str) -> None:
    """The file holds where the scores come from, and then everything that was shown."""
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert lines == list(records.values())
    provenance = first["provenance"]
    weights = hashlib.sha256((draft / "model.safetensors").read_bytes()).hexdigest()
    assert provenance["drafter"]["model.safetensors_sha256"] == weights
    assert provenance["conversations_sha256"] == load_conversations(path.parents[1] / "work" / "by-kind.npz").digest()
    assert provenance["arguments"]["prompts"] == "by-kind"
    assert provenance["arguments"]["draft"] == "draft"  # by its name: no folder of this machine
    assert provenance["packages"]["torch"] == torch.__version__.partition("+")[0]
    for at in lines[-1]["reliability"]:
        row = f"| {at['depth']} | {at['confidence']:.3f} | {at['accuracy']:.3f} | {at['calibration_error']:.3f} |"
        assert row in printed
    assert len(lines[-1]["reliability"]) == 3
    assert lines[-1]["tokens"] == sum(one["tokens"] for one in lines[:-1])
    assert lines[-1]["chain"] == round(lines[-1]["tokens"] / lines[-1]["rounds"]["chain"], 3)


def test_one_command_goes_from_nothing_to_an_exported_and_scored_drafter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "HELD_OUT_PROMPTS", PROMPTS)
    flags = ["--target", str(folder), "--data", str(tmp_path / "data.npz"), "--work", str(tmp_path / "work")]
    flags += ["--output", str(tmp_path / "drafter"), "--threads", "1", "--float32", "--mask-token", "mask"]
    flags += ["--conversations", "60", "--generation-batch", "30", "--max-tokens", "90", "--held-out-percent", "30"]
    flags += ["--target-layers", "0,2", "--start-layers", "2,3", "--block-size", "4"]
    flags += ["--steps", "3", "--rows", "2", "--anchors", "4", "--evaluate-every", "100"]
    assert main(["all", *flags]) == 0
    printed = capsys.readouterr().out
    stages = ["conversations 60", '"step": 3', str(tmp_path / "drafter"), '"kind": "all"']
    places = [printed.index(stage) for stage in stages]
    assert places == sorted(places)
    assert (tmp_path / "drafter" / "model.safetensors").exists()
