"""The train stage: start a drafter from its target and train it, or go on from the newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.data.conversations import HeldOutConfig, load_conversations, split_held_out
from ddtree_sglang.training.features.cache import FeatureCache, unit_feature_scale
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.loop import Trainer, TrainingText
from ddtree_sglang.training.fit.run_record import check_resumable
from ddtree_sglang.training.model.drafter_config import DrafterChoices
from ddtree_sglang.training.score.evaluation import evaluate_drafter
from ddtree_sglang.training.stages.features import compute_features
from ddtree_sglang.training.stages.start import choose_start
from ddtree_sglang.training.stages.target import TargetFolder


def train(
    target: TargetFolder,
    data: Path,
    work: Path,
    choices: DrafterChoices,
    config: TrainingConfig,
    held_out: HeldOutConfig,
    *,
    allow_changes: bool,
) -> None:
    """Train up to `config.steps`; computes the features first where `work` has none.

    Raises:
        ValueError: the target, the data or the checkpoint in `work` does not fit; the message says what to do.
        DiskFullError: there is no room for features or a checkpoint.
    """
    start = choose_start(target, choices)
    conversations, checkpoints = load_conversations(data), work / "checkpoints"
    train_part, held_out_part = split_held_out(conversations, held_out.percent)
    saved = load_checkpoint(checkpoints)
    if saved is not None:  # asked before the features, which may take hours
        check_resumable(saved, config, conversations, held_out.percent, allow_changes=allow_changes)
    cache = compute_features(target, conversations, start.shape.target_layer_ids, work, config.dtype)
    source = target.load(torch.float32)
    _check_hidden_size(source, cache, work)
    torch.manual_seed(config.seed)
    scale = unit_feature_scale(cache)
    model = start.model(source, scale).to(target.device)
    embedding = source.get_input_embeddings().weight.detach()
    head = source.get_output_embeddings().weight.detach().to(config.dtype)
    del source
    shown = held_out_part[: held_out.limit or None]
    trainer = Trainer(
        model=model,
        embedding=embedding,
        head=head,
        text=TrainingText(conversations, cache, train_part, scale, held_out.percent),
        config=config,
        folder=checkpoints,
        evaluate=lambda drafter: evaluate_drafter(
            drafter, embedding, head, conversations, cache, shown, scale
        ).summary(),
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(train_part)} training, {len(held_out_part)} held-out conversations"
    )
    trainer.run()


def _check_hidden_size(source: Any, cache: FeatureCache, work: Path) -> None:
    if source.config.hidden_size != cache.spec.hidden_size:
        raise ValueError(
            f"the target's hidden size must be that of the features in {work}, got {source.config.hidden_size} and "
            f"{cache.spec.hidden_size}: name another --work folder."
        )
