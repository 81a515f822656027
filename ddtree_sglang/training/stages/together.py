"""The together stage: the target writes conversations and its drafter learns on them, in one process on one device.

Written in waves, then trained on with features computed anew in each step, each for so many seconds. For devices that
write and train faster than files of features are read: a GPU. A run that is stopped begins anew, with the conversations
that it has written; its drafter of the last score is in `--work`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.data.conversations import (
    Conversations,
    HeldOutConfig,
    load_conversations,
    split_held_out,
)
from ddtree_sglang.training.data.self_generation import GenerationPlan, Written, read_written, write_conversations
from ddtree_sglang.training.data.waves import KnownPrompts, WaveShape, WaveWriter
from ddtree_sglang.training.described import described
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import unit_feature_scale
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.live_batches import TextOnDevice
from ddtree_sglang.training.fit.timed import TimedTrainer
from ddtree_sglang.training.fit.training_curve import TrainingCurve
from ddtree_sglang.training.model.drafter_config import DrafterChoices
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, with_raw_features
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.model.target_forward import TargetForward, check_forward
from ddtree_sglang.training.score.evaluation import evaluate_drafter
from ddtree_sglang.training.score.results import collect_provenance
from ddtree_sglang.training.stages.start import Start, check_fit, choose_start
from ddtree_sglang.training.stages.target import TargetFolder

DEFAULTS: dict[str, Any] = {
    "generation_batch": 4096,
    "max_tokens": 448,
    "turn_top_p": 1.0,
    "sampled_share": 0.1,
    "rows": 128,
    "learning_rate": 1.5e-3,
    "warmup_steps": 100,
    "cooldown": 0.75,
    "optimizer": "muon",
    "log_every": 50,
    "evaluate_every": 500,
    "held_out_limit": 128,
}
"""Values of flags that this stage has where the command line says nothing."""

NOT_DONE = (
    "steps",
    "confidence_floor",
    "anchor_uncertainty",
    "feature_noise",
    "sampled_vocabulary",
    "checkpoint_every",
)
"""Fields of `TrainingConfig` that this stage has no use for."""


@dataclass(frozen=True)
class TogetherConfig:
    """How long to write and to train, and what of writing is this stage's own."""

    write_seconds: float = described(230.0, "seconds in which conversations are written, in whole waves; 0 writes none")
    train_seconds: float = described(860.0, "seconds of training, scores not counted")
    coolest_turn: float = described(
        0.6, "lowest temperature of a user turn; each has one of its own, up to --turn-temperature"
    )
    long_every: int = described(
        4, "every so many waves, one has half the conversations, of twice the --max-tokens; 0: none"
    )
    loss_rows: int = described(8192, "drafted positions whose logits are in memory at once")

    def __post_init__(self) -> None:
        if self.write_seconds < 0 or self.train_seconds <= 0:
            raise ValueError(
                f"--write-seconds must be 0 or more and --train-seconds more than 0, got {self.write_seconds} and "
                f"{self.train_seconds}."
            )
        if self.coolest_turn <= 0 or self.long_every < 0 or self.loss_rows < 1:
            raise ValueError(
                f"--coolest-turn must be more than 0, --long-every 0 or more and --loss-rows 1 or more, got "
                f"{self.coolest_turn}, {self.long_every} and {self.loss_rows}."
            )


def together(
    target: TargetFolder,
    data: Path | None,
    work: Path,
    output: Path,
    choices: DrafterChoices,
    plan: GenerationPlan,
    config: TogetherConfig,
    training: TrainingConfig,
    held_out: HeldOutConfig,
    arguments: Mapping[str, Any],
) -> None:
    """Write conversations, train on all that the file of them holds then, and export the drafter to `output`.

    Args:
        data: file of conversations; without one, a file in `work`.
        work: folder of the curve and of the drafter at its last score, in `together/`.
        arguments: what the curve's first line says the run was asked for with.

    Raises:
        ValueError: the target, the drafter to go on from, the conversations or a flag does not fit.
    """
    start, folder = choose_start(target, choices), work / "together"
    _check_flags(plan, config, training)
    data = data or folder / "conversations.npz"
    written, known = read_written(data), _known_prompts(target)
    _check_prompts(data, written, known)
    longest = max([plan.max_tokens * (2 if config.long_every else 1), *map(len, written.rows)])
    check_forward(target.folder, longest)
    source = target.load(training.dtype)
    if start.drafter is not None:
        check_fit(start.drafter, source)  # before the writing
    forward = TargetForward(source, longest)
    if config.write_seconds:
        _write(written, target, forward, plan, config, known)
        marks = np.array(written.sampled, dtype=np.int8)
        write_conversations(data, written.rows, written.starts, sampled=marks, attempted=written.attempted)
    curve = TrainingCurve(folder / "curve.jsonl")
    curve.path.unlink(missing_ok=True)
    curve.append({"step": 0, "run": collect_provenance(arguments, target=target_fingerprint(target.folder))})
    drafter = _train(target, source, forward, start, load_conversations(data), curve, config, training, held_out)
    export_drafter(drafter, output, training.dtype)
    write_manifest(output)
    print(output)


def _train(
    target: TargetFolder,
    source: Any,
    forward: TargetForward,
    start: Start,
    conversations: Conversations,
    curve: TrainingCurve,
    config: TogetherConfig,
    training: TrainingConfig,
    held_out: HeldOutConfig,
) -> DFlashDrafter:
    """The trained drafter, which takes raw features."""
    train_part, held_out_part = split_held_out(conversations, held_out.percent)
    shown = conversations.chosen(evenly_spread(held_out_part, held_out.limit))
    curve.append({"step": 0, "text": _numbers(conversations, train_part, held_out_part, shown)})
    embedding = target.load(torch.float32).get_input_embeddings().weight.detach()
    with tempfile.TemporaryDirectory(dir=curve.path.parent) as features:
        cache = build_feature_cache(shown, source, start.shape.target_layer_ids, Path(features))
        scale = unit_feature_scale(cache)
        torch.manual_seed(training.seed)
        model = start.model(source, scale).to(forward.device)

        def keep(drafter: DFlashDrafter) -> None:
            export_drafter(with_raw_features(drafter, scale), curve.path.parent / "drafter", training.dtype)

        def evaluate(drafter: DFlashDrafter) -> dict[str, Any]:
            everything = list(range(len(shown)))
            return evaluate_drafter(drafter, embedding, forward.head, shown, cache, everything, scale).summary()

        TimedTrainer(
            model=model,
            target=forward,
            embedding=embedding,
            text=TextOnDevice(conversations, forward.device),
            train=train_part,
            feature_scale=scale.to(forward.device),
            config=training,
            seconds=config.train_seconds,
            rows_at_once=config.loss_rows,
            curve=curve,
            evaluate=evaluate,
            keep=keep,
        ).run()
    return with_raw_features(model, scale)


def _write(
    written: Written,
    target: TargetFolder,
    forward: TargetForward,
    plan: GenerationPlan,
    config: TogetherConfig,
    known: KnownPrompts,
) -> None:
    """Add waves of conversations for the configured seconds; prints what each has brought.

    Raises:
        ValueError: none brought any.
    """
    heat = (config.coolest_turn, plan.turn_temperature)
    # A seed of its own for each run on a file that grows.
    seed = plan.seed * 1_000_003 + written.attempted
    writer = WaveWriter(target.tokenizer(), target.end_ids(), forward.device, heat, known, seed)
    short = WaveShape(plan.batch, plan.max_tokens, plan.max_user_tokens, round(plan.batch * plan.sampled_share))
    memory = forward.key_memory(short.rows, short.length)
    began, waves, answered = time.monotonic(), 0, 0
    while time.monotonic() - began < config.write_seconds:
        waves += 1
        shape = short.longer() if config.long_every and waves % config.long_every == 0 else short

        def step(tokens: Tensor, position: int, length: int = shape.length) -> Tensor:
            return forward.step(tokens, position, memory, length)

        wave = writer.write(step, shape)
        written.rows += wave.rows
        written.starts += wave.starts
        written.sampled += wave.sampled
        written.attempted += shape.rows
        answered += wave.num_answer_tokens
        seconds = time.monotonic() - began
        print(
            f"wave {waves}: {len(wave.rows)} of {shape.rows} kept, conversations {len(written.rows)}, "
            f"{answered / seconds:.0f} answer tokens/s, {max(0.0, config.write_seconds - seconds):.0f} s left",
            flush=True,
        )
    if not written.rows:
        raise ValueError(
            f"{waves} waves of {plan.batch} had no new user turn with an answer of two tokens: does the target "
            "follow its chat template? Raise --max-tokens or --write-seconds."
        )


def evenly_spread(indices: list[int], limit: int) -> list[int]:
    """So many of the indices, or all where the limit is 0 or more: the first ones are of the first wave alone."""
    if not 0 < limit < len(indices):
        return indices
    return [indices[place * len(indices) // limit] for place in range(limit)]


def _known_prompts(target: TargetFolder) -> KnownPrompts:
    tokenizer = target.tokenizer()
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"conversations are written by the target's chat template, the tokenizer in {target.folder} has none: add "
            "one, or use the train stage with conversations from elsewhere."
        )
    return KnownPrompts(tokenizer)


def _check_prompts(data: Path, written: Written, known: KnownPrompts) -> None:
    """Make the prompts of a file known; ValueError where drafters are scored on one of them."""
    prompts = [row[:start] for row, start in zip(written.rows, written.starts, strict=True)]
    count = sum(known.scored(prompts))
    if count:
        raise ValueError(
            f"no drafter is trained on the prompts that the recipe scores with, {data} has {count} of them: leave "
            "them out, or name another --data."
        )
    known.fresh(prompts)


def _numbers(
    conversations: Conversations, train: list[int], held_out: list[int], shown: Conversations
) -> dict[str, int]:
    """How much there is to train on and to score with."""
    answers = len(conversations.tokens) - int(conversations.answer_start.sum())
    return {
        "train": len(train),
        "held_out": len(held_out),
        "scored": len(shown),
        "scored_sampled": 0 if shown.sampled is None else int((shown.sampled == 1).sum()),
        "tokens": len(conversations.tokens),
        "answer_tokens": answers,
    }


def _check_flags(plan: GenerationPlan, config: TogetherConfig, training: TrainingConfig) -> None:
    usual = TrainingConfig()
    changed = [name for name in NOT_DONE if getattr(training, name) != getattr(usual, name)]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise ValueError(f"the together stage ends by the clock and has the exact loss: leave out {flags}.")
    if plan.turn_top_p != 1:
        raise ValueError(f"the together stage sorts no vocabulary: leave out --turn-top-p, got {plan.turn_top_p}.")
    if config.coolest_turn > plan.turn_temperature:
        raise ValueError(
            f"--coolest-turn must be at most --turn-temperature, got {config.coolest_turn} and {plan.turn_temperature}."
        )
    if plan.batch < 2 or min(plan.max_tokens, plan.max_user_tokens, training.rows, training.anchors_per_row) < 1:
        raise ValueError(
            f"--generation-batch must be 2 or more, and --max-tokens, --max-user-tokens, --rows and --anchors 1 or "
            f"more, got {plan.batch}, {plan.max_tokens}, {plan.max_user_tokens}, {training.rows} and "
            f"{training.anchors_per_row}."
        )
