"""The numbers of a training run, each described once; flags and the run's record are made from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.training.described import described, descriptions


@dataclass(frozen=True)
class TrainingConfig:
    """What a checkpoint records as its "plan"; a field that came later is missing in an older record."""

    steps: int = described(2000, "optimizer steps of the whole run", fixed=False)
    rows: int = described(4, "conversations per step")
    anchors_per_row: int = described(32, "blocks per conversation and step", flag="--anchors")
    learning_rate: float = described(1e-3, "learning rate between warm-up and cool-down")
    warmup_steps: int = described(30, "steps in which the learning rate rises from 0")
    cooldown: float = described(0.6, "share of all steps, at the end, in which the learning rate falls to 0")
    optimizer: str = described("adamw", "optimizer of the weight matrices", choices=("muon", "adamw"))
    soft_share: float = described(
        0.5, "share of the loss that is of the target's distribution; the rest is of the text"
    )
    depth_decay: float = described(0.75, "weight of a draft position in the loss, as a factor of the one before it")
    confidence_floor: float | None = described(
        None,
        "weight each draft position by the probability that the drafts before it are right, each counted as at least "
        "this (0 to 1); without the flag there is no such weight",
    )
    anchor_uncertainty: float = described(
        0.0, "share (0 to 1) of the choice of anchors that prefers those after which the target is unsure"
    )
    feature_noise: float = described(
        0.0, "largest size of the uniform noise that is added to features of unit size, against overfitting"
    )
    sampled_vocabulary: int = described(2048, "tokens that a step scores beside the labels and the target's candidates")
    seed: int = described(0, "seed of the start, the batches, the noise and of generation")
    bfloat16: bool = described(
        True, "compute, cache features and export in float32 instead of bfloat16", flag="--float32"
    )
    log_every: int = described(10, "steps between two lines of the training curve", fixed=False)
    checkpoint_every: int = described(50, "steps between two checkpoints", fixed=False)
    evaluate_every: int = described(200, "steps between two scores on held-out conversations", fixed=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products, cached features and exported weights."""
        return torch.bfloat16 if self.bfloat16 else torch.float32


FIXED_FIELDS = frozenset(one.name for one, what in descriptions(TrainingConfig) if what.fixed)
"""What a resumed run must keep, unless changes are asked for."""
