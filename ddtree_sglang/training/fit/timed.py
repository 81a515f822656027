"""The training loop beside a target that computes features anew in each step; it ends by the clock.

Exact loss over the whole vocabulary. There are no checkpoints: the run is short, and what it has reached is kept with
every score.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.distillation import StepLoss
from ddtree_sglang.training.fit.live_batches import LiveBatch, TextOnDevice, live_batch, similar_lengths
from ddtree_sglang.training.fit.optimizer import DrafterOptimizer, TimedSchedule
from ddtree_sglang.training.fit.training_curve import ProgressMeter, TrainingCurve
from ddtree_sglang.training.fit.whole_vocabulary import whole_vocabulary_loss
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.target_forward import TargetForward


@dataclass(kw_only=True)
class TimedTrainer:
    """One run: the drafter, the frozen target, the text, and what is done with a score."""

    model: DFlashDrafter
    target: TargetForward
    embedding: Tensor  # [V, H] input embedding, float32
    text: TextOnDevice
    train: list[int]  # indices of the conversations that are trained on
    feature_scale: Tensor  # [F*H] float32, gives each context feature unit size
    config: TrainingConfig
    seconds: float  # of steps; scores do not count
    rows_at_once: int  # whose logits over the whole vocabulary are in memory
    curve: TrainingCurve
    evaluate: Callable[[DFlashDrafter], dict[str, Any]]  # held-out scores, JSON-ready
    keep: Callable[[DFlashDrafter], None]  # called with every score but the first

    def run(self) -> int:
        """Train until the seconds are over; returns the number of steps."""
        config, curve, step = self.config, self.curve, 0
        optimizer, meter = DrafterOptimizer(self.model, config.optimizer), ProgressMeter(0, 0, 0.0)
        schedule = TimedSchedule(config.learning_rate, self.seconds, config.warmup_steps, config.cooldown)
        generator = torch.Generator(self.target.device).manual_seed(config.seed)
        numbers, chosen = np.random.default_rng(config.seed), np.array(self.train)
        batches = similar_lengths(self.text.lengths_cpu[chosen], config.rows, numbers)
        curve.append({"step": 0, "held_out": self.evaluate(self.model)})
        clock = _Clock()
        while (elapsed := clock.seconds()) < self.seconds:
            rate = schedule.at(step, elapsed)
            meter.add(self._gradient_step(chosen[next(batches)], generator))
            optimizer.step(rate)
            step += 1
            if step % config.log_every == 0:
                curve.append(_line(meter, step, rate, clock, self.seconds))
            if step % config.evaluate_every == 0:
                clock.pause()
                self._score(step)
                clock.go_on()
        if meter.losses:
            curve.append(_line(meter, step, rate, clock, self.seconds))
        if step % config.evaluate_every:
            self._score(step)
        return step

    def _score(self, step: int) -> None:
        self.curve.append({"step": step, "held_out": self.evaluate(self.model)})
        self.keep(self.model)

    def _gradient_step(self, indices: np.ndarray, generator: torch.Generator) -> StepLoss:
        config, shape = self.config, self.model.config
        batch = live_batch(
            self.text,
            self.target,
            indices,
            shape.target_layer_ids,
            config.anchors_per_row,
            shape.num_drafts,
            generator,
        )
        embeds = self.embedding[self.model.block_token_ids(batch.anchor_tokens)].float()
        with torch.autocast(self.target.device.type, torch.bfloat16, enabled=config.bfloat16):
            hidden = self.model(embeds, batch.features.float() * self.feature_scale, batch.anchors)
        result = self._loss(hidden[:, :, 1:], batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return result

    def _loss(self, hidden: Tensor, batch: LiveBatch) -> StepLoss:
        """The loss of drafted states [C, A, D, H], whose gradient goes into the drafter's weights."""
        decay = self.config.depth_decay ** torch.arange(self.model.config.num_drafts, device=hidden.device)
        weights = batch.valid * decay
        weights = weights / weights.sum().clamp_min(1e-9)
        found = whole_vocabulary_loss(
            hidden.detach().flatten(0, 2),
            self.target.head,
            batch.labels.flatten(),
            batch.target_states.flatten(0, 2),
            weights.flatten(),
            soft_share=self.config.soft_share,
            rows_at_once=self.rows_at_once,
        )
        hidden.backward(found.gradient.view(hidden.shape).to(hidden.dtype))
        right = found.right.view(batch.valid.shape) & batch.valid
        return StepLoss(found.loss, right.float().sum((0, 1)), batch.valid.float().sum((0, 1)))


class _Clock:
    """Seconds since it was made, those of pauses left out."""

    def __init__(self) -> None:
        self._began, self._paused = time.monotonic(), 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def pause(self) -> None:
        self._paused = time.monotonic()

    def go_on(self) -> None:
        self._began += time.monotonic() - self._paused


def _line(meter: ProgressMeter, step: int, rate: float, clock: _Clock, seconds: float) -> dict[str, Any]:
    elapsed = clock.seconds()
    times = {"seconds": round(elapsed, 1), "seconds_left": round(max(0.0, seconds - elapsed), 1)}
    return meter.line(step, rate) | times
