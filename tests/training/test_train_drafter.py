"""The training command on a tiny random target: learns, resumes exactly, refuses bad input, exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.data.conversations import load_conversations, split_held_out
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.export import load_drafter
from tests.training.tiny import VOCABULARY, read_curve, save_tiny_target, tiny_target

SHAPE = ["--target-layers", "0,2", "--start-layers", "2,3", "--block-size", "4", "--mask-token", "mask"]
SMALL = [
    "--rows",
    "4",
    "--anchors",
    "8",
    "--sampled-vocabulary",
    "16",
    "--learning-rate",
    "3e-3",
    "--float32",
]
COMMON = [*SHAPE, *SMALL, "--held-out-percent", "30", "--threads", "1", "--optimizer", "adamw"]


@pytest.fixture(scope="module")
def trained(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder after 60 steps."""
    work = tmp_path_factory.mktemp("work")
    flags = ["--steps", "60", "--evaluate-every", "30", "--checkpoint-every", "20"]
    assert main(["train", *inputs, "--work", str(work), *COMMON, *flags]) == 0
    return work


def test_loss_falls_and_held_out_accept_length_is_reported(trained: Path) -> None:
    curve = read_curve(trained)
    losses = [record["loss"] for record in curve if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    held_out = [record["held_out"] for record in curve if "held_out" in record]
    assert len(held_out) == 2
    assert held_out[-1]["tree8"] >= held_out[-1]["chain"] >= 1.0
    assert len(held_out[-1]["accuracy_by_depth"]) == 3


def test_resumed_training_continues_exactly_as_uninterrupted(inputs: list[str], tmp_path: Path) -> None:
    flags = ["--steps", "20", "--checkpoint-every", "5", "--evaluate-every", "1000"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main(["train", *inputs, "--work", str(straight), *COMMON, *flags]) == 0
    shutil.copytree(straight, broken)
    for path in (broken / "checkpoints").glob("step-0000020.*"):
        path.unlink()  # what a kill between steps 15 and 20 leaves
    assert main(["train", *inputs, "--work", str(broken), *COMMON, *flags]) == 0
    expected, found = load_checkpoint(straight / "checkpoints"), load_checkpoint(broken / "checkpoints")
    assert expected is not None
    assert found is not None
    assert found["step"] == 20
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=0, atol=0)
    # Step 15 lies in the middle of an average.
    assert [record["step"] for record in read_curve(broken)] == [10, 20, 20]
    for name in ("step", "loss", "accuracy_by_depth", "learning_rate", "held_out"):
        assert [record.get(name) for record in read_curve(broken)] == [
            record.get(name) for record in read_curve(straight)
        ]


def test_corrupt_newest_checkpoint_falls_back_to_the_one_before(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained / "checkpoints", folder)
    newest = folder / "step-0000060.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    saved = load_checkpoint(folder)
    assert saved is not None
    assert saved["step"] == 40
    assert "corrupt" in capsys.readouterr().out


def test_exported_drafter_has_the_engines_fields_and_equals_the_trained_one(
    inputs: list[str], trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "drafter"
    assert main(["export", "--work", str(trained), "--output", str(output), "--float32"]) == 0
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["DFlashDraftModel"]
    assert config["dflash_config"]["target_layer_ids"] == [0, 2]
    assert config["dflash_config"]["mask_token_id"] == VOCABULARY - 1
    assert config["block_size"] == config["dflash_config"]["block_size"] == 4
    exported = load_drafter(output)
    saved = load_checkpoint(trained / "checkpoints")
    assert saved is not None
    model = type(exported)(DrafterConfig.from_hf_config(saved["config"]))
    model.load_state_dict(saved["model"])
    cache = FeatureCache(trained / "features")
    raw = cache.features(0, 30).float()[None]
    embeds, anchors = torch.randn(1, 2, 4, 48), torch.tensor([[7, 30]])
    with torch.inference_mode():
        expected = model(embeds, raw * saved["feature_scale"], anchors)
        torch.testing.assert_close(exported(embeds, raw, anchors), expected, rtol=1e-4, atol=1e-4)


def test_feature_rows_are_the_streams_after_the_chosen_layers(inputs: list[str], trained: Path) -> None:
    cache = FeatureCache(trained / "features")
    target = tiny_target()
    streams: list[torch.Tensor] = []
    for index in (0, 2):
        target.model.layers[index].register_forward_hook(lambda _m, _i, out: streams.append(out))
    ids = load_conversations(Path(inputs[3])).token_ids(3)
    with torch.inference_mode():
        logits = target(ids[None]).logits[0]
    expected = torch.cat([stream[0] for stream in streams], dim=-1).to(torch.bfloat16)
    start = 3 * len(ids)
    torch.testing.assert_close(cache.features(start, start + len(ids)), expected, rtol=0.02, atol=0.02)
    assert torch.equal(cache.next_token_ids(start, start + len(ids))[:, 0], logits.argmax(-1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-layers", "0,1"], "feature cache must belong"),
        (["--held-out-percent", "1"], "held-out part needs at least 8"),
        (["--mask-token", "absent"], "mask token must be in the target's vocabulary"),
        (["--start-layers", "3"], "resumed run must keep the drafter's shape"),
        (["--seed", "1", "--rows", "5"], "these differ: rows: 4 -> 5; seed: 0 -> 1. Pass the old values"),
        (["--held-out-percent", "40"], "has 30 %, got 40 %"),
    ],
)
def test_unfit_input_is_refused_and_nothing_is_lost(
    inputs: list[str], trained: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (trained / "checkpoints").iterdir())
    arguments = ["train", *inputs, "--work", str(trained), *COMMON, "--steps", "60", *flags]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("stage", ["generate", "features", "train", "all"])
def test_stage_without_a_target_says_which_flag_it_needs(
    inputs: list[str], stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "drafter")
    assert main([stage, *inputs[2:], "--work", str(tmp_path / "work"), "--output", output, *COMMON]) == 2
    assert "pass --target FOLDER" in capsys.readouterr().err


def test_target_of_another_hidden_size_than_the_features_is_refused(
    inputs: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_target(tmp_path / "target", hidden_size=64)
    arguments = [
        "train",
        "--target",
        str(other),
        *inputs[2:],
        "--work",
        str(trained),
        *COMMON,
        "--steps",
        "60",
    ]
    assert main(arguments) == 2
    assert "feature cache must be of this target" in capsys.readouterr().err


def _grow(data: Path, output: Path) -> Path:
    """A copy of the conversations, followed by the first ten of them with another last token."""
    held = load_conversations(data)
    more = held.head(10)
    tokens = more.tokens.clone()
    tokens[more.offsets[1:] - 1] = 1
    np.savez(
        output,
        tokens=np.concatenate([held.tokens, tokens]),
        offsets=np.concatenate([held.offsets, int(held.offsets[-1]) + more.offsets[1:]]),
        answer_start=np.concatenate([held.answer_start, more.answer_start]),
    )
    return output


def test_a_run_goes_on_with_grown_data_and_another_optimizer_when_asked(
    inputs: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = shutil.copytree(trained, tmp_path / "work")
    grown = [*inputs[:2], "--data", str(_grow(Path(inputs[3]), tmp_path / "grown.npz"))]
    arguments = ["train", *grown, "--work", str(work), *COMMON, "--steps", "63", "--optimizer", "muon"]
    assert main(arguments) == 2
    assert "grown by new ones at the end" in capsys.readouterr().err
    assert FeatureCache(work / "features").spec == FeatureCache(trained / "features").spec
    assert main([*arguments, "--allow-changed-plan"]) == 0
    printed = capsys.readouterr().out
    assert "optimizer: adamw -> muon" in printed
    assert "resuming at step 60 of 63 (planned were 60" in printed
    saved = load_checkpoint(work / "checkpoints")
    assert saved is not None
    assert saved["step"] == 63
    assert saved["data"]["conversations"] == 70
    assert saved["plan"]["optimizer"] == "muon"


def test_a_score_that_a_kill_prevented_is_made_up_for(
    inputs: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of the last step is written, its held-out score is not."""
    work = shutil.copytree(trained, tmp_path / "work")
    expected = read_curve(trained)
    assert "held_out" in expected[-1]
    lines = [json.dumps(record) + "\n" for record in expected]
    (work / "checkpoints" / "curve.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])  # a line cut off, too
    flags = ["--steps", "60", "--evaluate-every", "30", "--checkpoint-every", "20"]
    for _ in range(2):  # made up for once, not at every start
        assert main(["train", *inputs, "--work", str(work), *COMMON, *flags]) == 0
        assert read_curve(work) == expected
    assert capsys.readouterr().out.count("held_out") == 1


def test_a_checkpoint_is_not_scored_on_what_it_was_trained_on(
    inputs: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*COMMON, "--held-out-percent", "31"]
    assert main(["evaluate", *inputs, "--work", str(trained), *flags]) == 2
    assert "it held out 30 %, got --held-out-percent 31. Pass 30 or less." in capsys.readouterr().err


def test_layers_that_are_no_numbers_are_refused_with_an_example(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", *inputs, "--work", str(tmp_path), "--target-layers", "a"])
    assert "layers must be numbers from 0 with commas between, such as 1,8,15, got 'a'" in capsys.readouterr().err


def test_a_drafter_is_scored_with_its_own_layers_and_marked_answers_apart(
    inputs: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No layer flag here; every other answer is marked as sampled."""
    work, data = shutil.copytree(trained, tmp_path / "work"), tmp_path / "marked.npz"
    with np.load(inputs[3]) as arrays:
        np.savez(data, **arrays, sampled=np.arange(60, dtype=np.int8) % 2)
    flags = ["--held-out-percent", "30", "--threads", "1", "--float32"]
    assert main(["evaluate", *inputs[:2], "--data", str(data), "--work", str(work), *flags]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    records = {record["kind"]: record for record in map(json.loads, printed)}
    assert set(records) == {"held out, greedy", "held out, sampled", "all"}
    _, held_out = split_held_out(load_conversations(data), 30)
    assert records["held out, sampled"]["conversations"] == sum(index % 2 for index in held_out)
    assert records["all"]["conversations"] == len(held_out)
    other = save_tiny_target(tmp_path / "other", hidden_size=64)
    draft = str(tmp_path / "draft")
    assert main(["export", "--work", str(work), "--output", draft]) == 0
    assert main(["evaluate", "--target", str(other), *inputs[2:], "--work", str(work), "--draft", draft, *flags]) == 2
    assert "they differ in hidden_size 48 and 64: pass its own" in capsys.readouterr().err


def test_damaged_weights_of_the_target_are_named(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shutil.copytree(inputs[1], tmp_path / "target")
    (target / "model.safetensors").write_bytes(b"\0" * 100)
    assert main(["features", "--target", str(target), *inputs[2:], "--work", str(tmp_path / "work"), *COMMON]) == 2
    assert f"the target's weights in {target} are damaged" in capsys.readouterr().err
