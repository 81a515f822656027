"""The run's numbers are described once: flags, help and the checkpoint's record follow from the fields."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from ddtree_sglang.training.described import descriptions
from ddtree_sglang.training.fit.config import FIXED_FIELDS, TrainingConfig
from ddtree_sglang.training.flags import build_parser, parse_command

CARD = Path(__file__).parents[2] / "ddtree_sglang/demo/drafter/README.md"

# A value that is no default, for every field of a run.
CHANGED = {
    "steps": ("--steps", 7),
    "rows": ("--rows", 3),
    "anchors_per_row": ("--anchors", 5),
    "learning_rate": ("--learning-rate", 0.5),
    "warmup_steps": ("--warmup-steps", 2),
    "cooldown": ("--cooldown", 0.1),
    "optimizer": ("--optimizer", "muon"),
    "soft_share": ("--soft-share", 0.9),
    "depth_decay": ("--depth-decay", 0.8),
    "confidence_floor": ("--confidence-floor", 0.3),
    "anchor_uncertainty": ("--anchor-uncertainty", 0.4),
    "feature_noise": ("--feature-noise", 0.2),
    "sampled_vocabulary": ("--sampled-vocabulary", 9),
    "seed": ("--seed", 11),
    "bfloat16": ("--float32", False),
    "log_every": ("--log-every", 4),
    "checkpoint_every": ("--checkpoint-every", 6),
    "evaluate_every": ("--evaluate-every", 8),
}


def test_a_command_without_flags_has_the_defaults() -> None:
    assert parse_command(["train", "--work", "w"], "").training == TrainingConfig()


def test_every_field_of_a_run_can_be_set_from_the_command_line() -> None:
    assert set(CHANGED) == {one.name for one in fields(TrainingConfig)}
    flags = [part for name, (flag, value) in CHANGED.items() for part in (flag, str(value))[: 2 - (name == "bfloat16")]]
    command = parse_command(["train", "--work", "w", *flags], "")
    assert asdict(command.training) == {name: value for name, (_, value) in CHANGED.items()}
    assert command.generation.seed == 11


def test_every_flag_says_what_it_is_and_shows_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no line is broken at a hyphen
    shown = " ".join(build_parser("").format_help().split())
    for one, what in descriptions(TrainingConfig):
        default = "" if one.default is None or isinstance(one.default, bool) else f" (default: {one.default})"
        assert f"{what.meaning}{default}" in shown


def test_what_a_resumed_run_may_change_is_what_it_was() -> None:
    free = {"steps", "log_every", "checkpoint_every", "evaluate_every"}
    assert {one.name for one in fields(TrainingConfig)} - FIXED_FIELDS == free


def _card_commands() -> list[list[str]]:
    text = CARD.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in re.findall(r"^ +python -m ddtree_sglang\.training (.*)", text, re.MULTILINE)]


def test_commands_of_the_model_card_are_understood() -> None:
    commands = [parse_command(words, "") for words in _card_commands()]
    assert {"generate", "train", "export", "evaluate"} <= {command.stage for command in commands}
    runs = [command for command in commands if command.stage == "train"]
    found = sorted((one.training.steps, one.training.cooldown, one.held_out.limit) for one in runs)
    assert found == [(7000, 0.5, 24), (8500, 0.7, 24)]
    generate = next(command for command in commands if command.stage == "generate")
    assert generate.generation.turns.temperature == 0.8
