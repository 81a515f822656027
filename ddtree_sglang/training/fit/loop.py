"""The training loop: batches in, checkpoints and a curve out, resumable after a kill at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.anchor_batches import batch_at
from ddtree_sglang.training.fit.checkpoint import load_checkpoint, save_checkpoint
from ddtree_sglang.training.fit.distillation import StepLoss, choose_candidates, distillation_loss
from ddtree_sglang.training.fit.optimizer import DrafterOptimizer, Schedule
from ddtree_sglang.training.fit.run_record import data_record
from ddtree_sglang.training.fit.training_curve import ProgressMeter, TrainingCurve
from ddtree_sglang.training.model.drafter_model import DFlashDrafter


@dataclass(frozen=True)
class TrainingPlan:
    """All numbers of a run; seconds, steps and tokens as named."""

    steps: int
    rows: int = 4
    anchors_per_row: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 30
    cooldown: float = 0.6
    optimizer: str = "adamw"
    soft_share: float = 0.5
    depth_decay: float = 0.75
    confidence_floor: float | None = None
    anchor_uncertainty: float = 0.0
    feature_noise: float = 0.0
    sampled_vocabulary: int = 2048
    seed: int = 0
    bfloat16: bool = True
    log_every: int = 10
    checkpoint_every: int = 50
    evaluate_every: int = 200


@dataclass
class Trainer:
    """One run: the drafter, the frozen embedding of the target, its data, and where it writes."""

    model: DFlashDrafter
    embedding: Tensor  # [V, H] input embedding, float32
    head: Tensor  # [V, H] LM head
    conversations: Conversations
    cache: FeatureCache
    train: list[int]
    feature_scale: Tensor  # [F*H] float32: what makes each context feature unit size
    plan: TrainingPlan
    folder: Path
    held_out_percent: int
    evaluate: Callable[[DFlashDrafter], dict[str, Any]] | None = None

    def run(self) -> None:
        """Train from the newest checkpoint (or the current weights) to `plan.steps`.

        Whether the checkpoint is of this plan and these data is for the caller to ask, `check_resumable`.

        Raises:
            ValueError: the checkpoint is of a drafter of another shape, or none is intact.
            DiskFullError: there is no room for a checkpoint; the one before stays.
        """
        plan, optimizer = self.plan, DrafterOptimizer(self.model, self.plan.optimizer)
        saved = load_checkpoint(self.folder)
        step = self._restore(saved, optimizer) if saved else 0
        meter = ProgressMeter(plan.steps, step, float(saved["seconds"]) if saved else 0.0)
        if saved and "meter" in saved:
            meter.load_state_dict(saved["meter"])
        curve = TrainingCurve(self.folder / "curve.jsonl")
        curve.cut_after(step)
        # A kill during an evaluation leaves its checkpoint without a score.
        if step and not curve.is_scored(step):
            self._evaluate_if_due(step, curve)
        schedule = Schedule(plan.learning_rate, plan.steps, plan.warmup_steps, plan.cooldown)
        while step < plan.steps:
            result = self._gradient_step(step)
            optimizer.step(schedule.at(step))
            step += 1
            meter.add(result)
            if step % plan.log_every == 0 or step == plan.steps:
                curve.append(meter.line(step, schedule.at(step - 1)))
            if step % plan.checkpoint_every == 0 or step == plan.steps:
                self._save(step, optimizer, meter)
            self._evaluate_if_due(step, curve)

    def _evaluate_if_due(self, step: int, curve: TrainingCurve) -> None:
        if self.evaluate and (step % self.plan.evaluate_every == 0 or step == self.plan.steps):
            curve.append({"step": step, "held_out": self.evaluate(self.model)})

    def _gradient_step(self, step: int) -> StepLoss:
        plan, config = self.plan, self.model.config
        batch = batch_at(
            step,
            plan.seed,
            self.conversations,
            self.cache,
            self.train,
            rows=plan.rows,
            anchors_per_row=plan.anchors_per_row,
            num_drafts=config.num_drafts,
            uncertainty=plan.anchor_uncertainty,
        )
        device = self.embedding.device
        generator = torch.Generator().manual_seed(plan.seed * 9_000_011 + step)
        candidates = choose_candidates(batch, config.vocab_size, plan.sampled_vocabulary, generator).to(device)
        batch = batch.to(device)
        embeds = self.embedding[self.model.block_token_ids(batch.anchor_tokens)].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.bfloat16):
            hidden = self.model(embeds, self._features(batch.features, generator), batch.anchors)
        result = distillation_loss(
            hidden,
            self.head,
            batch,
            candidates,
            depth_weights=plan.depth_decay ** torch.arange(config.num_drafts, device=device),
            soft_share=plan.soft_share,
            confidence_floor=plan.confidence_floor,
        )
        torch.autograd.backward(result.loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return result

    def _features(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """Context features at unit size, with uniform noise of the plan's size against learning them by heart."""
        scaled = stored.float() * self.feature_scale.to(stored.device)
        if not self.plan.feature_noise:
            return scaled
        noise = (2 * torch.rand(scaled.shape, generator=generator) - 1) * self.plan.feature_noise
        return scaled + noise.to(scaled.device)

    def _restore(self, saved: dict[str, Any], optimizer: DrafterOptimizer) -> int:
        """Take over a checkpoint; returns its step."""
        if saved["config"] != self.model.config.to_hf_config():
            raise ValueError(
                f"a resumed run must keep the drafter's shape; {self.folder} holds a checkpoint of "
                f"{saved['config']}. Pass the same shape flags, or another --work folder."
            )
        self.model.load_state_dict(saved["model"])
        self.feature_scale.copy_(saved["feature_scale"])
        if saved["plan"]["optimizer"] == self.plan.optimizer:
            optimizer.load_state_dict(saved["optimizer"])
        else:
            print(f"{self.plan.optimizer} starts without the state of {saved['plan']['optimizer']}", flush=True)
        step, planned = int(saved["step"]), saved["plan"]["steps"]
        was = "" if planned == self.plan.steps else f" (planned were {planned}: the learning rate follows the new plan)"
        print(f"resuming at step {step} of {self.plan.steps}{was}", flush=True)
        return step

    def _save(self, step: int, optimizer: DrafterOptimizer, meter: ProgressMeter) -> None:
        payload = {
            "step": step,
            "seconds": meter.seconds(),
            "meter": meter.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "feature_scale": self.feature_scale,
            "config": self.model.config.to_hf_config(),
            "plan": asdict(self.plan),
            "data": asdict(data_record(self.conversations, self.held_out_percent)),
        }
        save_checkpoint(self.folder, step, payload)
