"""Writing and training in one process: what is learnt, what is held out, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ddtree_sglang.demo.manifest import manifest_problems
from ddtree_sglang.training import __main__ as command
from ddtree_sglang.training.data import waves
from ddtree_sglang.training.data.conversations import load_conversations, split_held_out
from ddtree_sglang.training.data.self_generation import write_conversations as write_file
from ddtree_sglang.training.data.waves import KnownPrompts
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.fit import timed
from ddtree_sglang.training.fit.anchor_batches import gather_batch
from ddtree_sglang.training.fit.live_batches import TextOnDevice, live_batch, similar_lengths
from ddtree_sglang.training.fit.optimizer import Schedule, TimedSchedule
from ddtree_sglang.training.flags import parse_command
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, load_drafter, with_raw_features
from ddtree_sglang.training.model.target_forward import TargetForward
from ddtree_sglang.training.score.evaluation import evaluate_drafter
from ddtree_sglang.training.stages import together as stage
from ddtree_sglang.training.stages.together import DEFAULTS, evenly_spread
from tests.training.tiny import (
    LAYER_IDS,
    read_curve,
    save_tiny_target,
    save_tokenizer,
    tiny_config,
    tiny_target,
    write_conversations,
)

SHAPE = ["--target-layers", "0,2", "--start-layers", "2,3", "--block-size", "4", "--mask-token", "mask"]
SMALL = [
    *("--generation-batch", "64", "--max-tokens", "60", "--max-user-tokens", "8", "--sampled-share", "0.25"),
    *("--rows", "8", "--anchors", "8", "--warmup-steps", "3", "--log-every", "5", "--evaluate-every", "1000000"),
    *("--held-out-percent", "30", "--held-out-limit", "12", "--float32", "--threads", "1", "--device", "cpu"),
]
QUICK = ["--write-seconds", "0.3", "--train-seconds", "0.3"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


class Ticking:
    """Seconds that pass by being asked for, so that a busy machine trains as many steps as an idle one."""

    def __init__(self, tick: float) -> None:
        self.tick, self.now = tick, 0.0

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def _settle(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(waves, "OPENINGS", ("", "w8 w9", "w10 w11 w12", "w14"))
    patch.setattr(timed, "time", Ticking(0.02))
    patch.setattr(stage, "time", Ticking(0.2))


@pytest.fixture(autouse=True)
def _phrases_of_the_vocabulary_and_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)


def _run(target: Path, work: Path, *flags: str) -> int:
    files = ["--target", str(target), "--work", str(work), "--output", str(work / "out")]
    return command.main(["together", *files, *SMALL, *flags])


@pytest.fixture(scope="module")
def trained(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder after some two hundred steps of training on two waves, the second a long one."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        _settle(patch)
        flags = ("--write-seconds", "0.8", "--train-seconds", "4", "--long-every", "2", "--learning-rate", "3e-3")
        assert _run(target, work, *SHAPE, *flags, "--data", str(work / "data.npz"), "--evaluate-every", "20") == 0
    return work


def test_the_loss_falls_and_drafts_are_accepted_further(trained: Path) -> None:
    curve = read_curve(trained, "together")
    losses = [record["loss"] for record in curve if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    scores = [record["held_out"] for record in curve if "held_out" in record]
    assert len(scores) > 2
    assert scores[-1]["chain"] > scores[0]["chain"] >= 1
    assert scores[-1]["tree8"] >= scores[-1]["chain"]
    lines = [record for record in curve if "loss" in record]
    assert [record["step"] for record in lines] == sorted({record["step"] for record in lines})
    assert lines[-1]["seconds"] > 3.5
    assert lines[-1]["learning_rate"] < max(record["learning_rate"] for record in lines) <= 3e-3


def test_the_curve_says_what_was_run_on_what(trained: Path) -> None:
    run, text = (read_curve(trained, "together")[i] for i in (0, 1))
    assert run["run"]["arguments"]["train_seconds"] == 4
    assert {"git_sha", "packages", "target"} <= set(run["run"])
    conversations = load_conversations(trained / "data.npz")
    assert text["text"]["train"] + text["text"]["held_out"] == len(conversations)
    assert text["text"]["scored"] == 12
    assert 0 < text["text"]["scored_sampled"] < 12


def test_the_export_loads_and_scores_as_the_drafter_in_training_did(trained: Path, tmp_path: Path) -> None:
    """On the features as the target gives them, whose scale is in the projection."""
    assert manifest_problems(trained / "out") == []
    drafter, kept = load_drafter(trained / "out"), load_drafter(trained / "together" / "drafter")
    for name, value in drafter.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name])
    conversations = load_conversations(trained / "data.npz")
    shown = conversations.chosen(evenly_spread(split_held_out(conversations, 30)[1], 12))
    source = tiny_target()
    cache = build_feature_cache(shown, source, LAYER_IDS, tmp_path / "features")
    weights = source.get_input_embeddings().weight.detach(), source.get_output_embeddings().weight.detach()
    everything = list(range(len(shown)))
    found = evaluate_drafter(drafter, *weights, shown, cache, everything, torch.ones(96)).summary()
    assert found == read_curve(trained, "together")[-1]["held_out"]


def test_no_prompt_of_the_held_out_part_is_trained_on(trained: Path) -> None:
    conversations = load_conversations(trained / "data.npz")
    train, held_out = split_held_out(conversations, 30)
    prompts = [{conversations.prompt_digest(index) for index in part} for part in (train, held_out)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0]) + len(prompts[1]) == len(conversations)
    assert conversations.sampled is not None
    for part in (train, held_out):
        assert {0, 1} == set(conversations.sampled[part].tolist())


def test_trained_conversations_are_those_of_the_training_part(
    target: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    rows = TextOnDevice.rows

    def watched(self: TextOnDevice, indices: np.ndarray) -> Any:
        seen.update(indices.tolist())
        return rows(self, indices)

    monkeypatch.setattr(TextOnDevice, "rows", watched)
    data = str(trained / "data.npz")
    assert _run(target, tmp_path, *SHAPE, "--data", data, "--write-seconds", "0", "--train-seconds", "1.5") == 0
    train, held_out = split_held_out(load_conversations(Path(data)), 30)
    assert not seen & set(held_out)
    assert len(seen) > 0.8 * len(train)


def test_a_second_run_adds_to_the_conversations_and_goes_on_from_a_drafter(
    target: Path, trained: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    data.write_bytes((trained / "data.npz").read_bytes())
    before = load_conversations(data)
    flags = ("--start-draft", str(trained / "out"), "--data", str(data), "--learning-rate", "1e-9")
    assert _run(target, tmp_path, *QUICK, *flags) == 0
    after = load_conversations(data)
    assert after.head(len(before)).digest() == before.digest()
    assert len({after.prompt_digest(index) for index in range(len(after))}) == len(after) > len(before)
    # It begins where the drafter was: what is trained is divided by the scale that the export multiplies by.
    old, new = (load_drafter(folder / "out").state_dict() for folder in (trained, tmp_path))
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=1e-5, atol=1e-6)


def test_a_folded_scale_changes_no_state() -> None:
    torch.manual_seed(0)
    model, scale = DFlashDrafter(tiny_config(tiny_target())).eval(), torch.rand(96) + 0.1
    raw, embeds, anchors = torch.randn(1, 30, 96), torch.randn(1, 2, 4, 48), torch.tensor([[7, 30]])
    before = model.fc.weight.clone()
    with torch.inference_mode():
        expected = model(embeds, raw * scale, anchors)
        torch.testing.assert_close(
            with_raw_features(model, scale)(embeds, raw, anchors), expected, rtol=1e-4, atol=1e-5
        )
    assert torch.equal(model.fc.weight, before)


def test_a_live_batch_is_the_stored_one(tmp_path: Path) -> None:
    """Labels, features and next tokens at the anchors that were drawn, in conversations of several lengths."""
    source = tiny_target()
    conversations = load_conversations(write_conversations(tmp_path / "data.npz", source, count=8))
    rows = [conversations.token_ids(index)[: 40 - 4 * index].numpy() for index in range(8)]
    write_file(tmp_path / "cut.npz", rows, [5] * 8)
    conversations = load_conversations(tmp_path / "cut.npz")
    cache = build_feature_cache(conversations, source, LAYER_IDS, tmp_path / "features", top_k=4)
    text, generator = TextOnDevice(conversations, torch.device("cpu")), torch.Generator().manual_seed(0)
    chosen = np.array([1, 7, 4])
    batch = live_batch(text, TargetForward(source, 40), chosen, LAYER_IDS, 9, 3, generator)
    assert batch.anchors.shape == (3, 9)
    for row, index in enumerate(chosen.tolist()):
        start, length = 5, 40 - 4 * index
        real = batch.valid[row, :, 0]
        assert int(real.sum()) == min(9, length - 1 - start)
        anchors = batch.anchors[row, real]
        assert len(set(anchors.tolist())) == len(anchors)
        assert start <= int(anchors.min())
        assert int(anchors.max()) <= length - 2
        stored = gather_batch(conversations, cache, [index], [anchors], 3)
        assert torch.equal(batch.valid[row, real], stored.valid[0])
        assert torch.equal(batch.anchor_tokens[row, real], stored.anchor_tokens[0])
        assert torch.equal(batch.labels[row, real][stored.valid[0]], stored.labels[0][stored.valid[0]])
        kept = stored.features[0].float()
        torch.testing.assert_close(batch.features[row, :length], kept, rtol=2e-2, atol=2e-2)
        next_ids = (batch.target_states[row, real] @ source.lm_head.weight.T).argmax(-1)
        assert torch.equal(next_ids[stored.valid[0]], stored.teacher_ids[0][stored.valid[0]][:, 0])


def test_an_epoch_has_every_conversation_once_in_batches_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 400, size=320)
    batches = similar_lengths(lengths, 8, np.random.default_rng(0))
    epoch = [next(batches) for _ in range(40)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(320))
    assert np.mean([np.ptp(lengths[batch]) for batch in epoch]) < 40
    assert len(next(similar_lengths(lengths[:5], 8, np.random.default_rng(0)))) == 5


def test_the_learning_rate_follows_the_clock() -> None:
    timed, by_step = TimedSchedule(2.0, 50.0, warmup=10, cooldown=0.5), Schedule(2.0, 50, warmup=10, cooldown=0.5)
    for step in range(50):
        assert timed.at(step, float(step)) == pytest.approx(by_step.at(step))
    assert timed.at(4, 0.0) == 1.0
    assert timed.at(1000, 37.5) == 1.0
    assert timed.at(1000, 50.0) == timed.at(1000, 51.0) == 0.0


def test_what_is_scored_is_spread_over_all_waves() -> None:
    assert evenly_spread(list(range(100, 200)), 4) == [100, 125, 150, 175]
    assert evenly_spread([1, 2, 3], 0) == evenly_spread([1, 2, 3], 5) == [1, 2, 3]


def test_defaults_are_those_that_the_help_names_and_flags_go_before_them() -> None:
    named = (command.__doc__ or "").split("defaults of its own: `")[1].split("`")[0].split()
    flags = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(named[::2], named[1::2], strict=True)
    }
    assert flags == {name: str(value) for name, value in DEFAULTS.items()}
    asked = ["--work", "w", "--rows", "3"]
    together, train = (parse_command([stage, *asked], "") for stage in ("together", "train"))
    assert (together.training.rows, together.training.optimizer, together.generation.batch) == (3, "muon", 4096)
    assert (train.training.rows, train.training.optimizer, train.generation.batch) == (3, "adamw", 64)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train-seconds", "0"), "--train-seconds more than 0, got 0.3 and 0.0"),
        (("--write-seconds", "-1"), "--write-seconds must be 0 or more"),
        (("--loss-rows", "0"), "--loss-rows 1 or more"),
        (("--steps", "5", "--feature-noise", "0.1"), "leave out --steps, --feature-noise."),
        (("--turn-top-p", "0.9"), "sorts no vocabulary: leave out --turn-top-p, got 0.9"),
        (("--coolest-turn", "2"), "must be at most --turn-temperature, got 2.0 and 1.0"),
        (("--generation-batch", "1"), "--generation-batch must be 2 or more"),
        (("--max-tokens", "300"), "fit the target's 256 positions, the longest would have 600"),
        (("--mask-token", "absent"), "'absent' is not: pass --mask-token"),
        (("--max-tokens", "10"), "has 11 tokens or more, got room for 10: raise --max-tokens"),
        (("--held-out-percent", "0"), "the held-out part needs at least 8 conversations"),
    ],
)
def test_bad_flags_are_one_line_each(
    target: Path, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(target, tmp_path, *SHAPE, *QUICK, *flags) == 2
    error = capsys.readouterr().err
    # Hugging Face shows there how it loads weights.
    assert [line.startswith("error: ") for line in error.splitlines()][-1:] == [True]
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1


def test_waves_that_bring_nothing_are_an_error(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(KnownPrompts, "fresh", lambda _, prompts: [False] * len(prompts))
    assert _run(target, tmp_path, *SHAPE, *QUICK) == 2
    assert "1 waves of 64 had no new user turn with an answer" in capsys.readouterr().err


def test_other_targets_drafters_and_files_are_refused(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=97)).save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2")
    assert _run(tmp_path / "gpt2", tmp_path, *SHAPE, *QUICK) == 2
    other = export_drafter(DFlashDrafter(tiny_config(tiny_target(hidden_size=64))), tmp_path / "other")
    assert _run(target, tmp_path, *QUICK, "--start-draft", str(other)) == 2
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    assert _run(target, tmp_path, *SHAPE, *QUICK, "--data", str(tmp_path / "bad.npz")) == 2
    plain = save_tiny_target(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert _run(plain, tmp_path, *SHAPE, *QUICK) == 2
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if line.startswith("error: ")]
    expected = ("GPT2LMHeadModel in", "differ in hidden_size 64 and 48", "must be an .npz file", "has none: add one")
    assert len(errors) == len(expected)
    for error, message in zip(errors, expected, strict=True):
        assert message in error
    assert not (tmp_path / "out").exists()


def test_a_file_with_a_prompt_of_the_scores_is_refused(
    target: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations = load_conversations(trained / "data.npz")
    turn = conversations.token_ids(0)[2 : int(conversations.answer_start[0]) - 3].tolist()
    monkeypatch.setattr(waves, "HELD_OUT_PROMPTS", {"kind": (" ".join(f"w{i}" for i in turn),)})
    assert _run(target, tmp_path, *SHAPE, *QUICK, "--data", str(trained / "data.npz")) == 2
    assert "has 1 of them: leave them out" in capsys.readouterr().err
