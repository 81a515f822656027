"""The training loop: it writes checkpoints and a curve, and goes on from them after a kill at any moment."""

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
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.distillation import StepLoss, choose_candidates, distillation_loss
from ddtree_sglang.training.fit.optimizer import DrafterOptimizer, Schedule
from ddtree_sglang.training.fit.run_record import data_record
from ddtree_sglang.training.fit.training_curve import ProgressMeter, TrainingCurve
from ddtree_sglang.training.model.drafter_model import DFlashDrafter


@dataclass(frozen=True)
class TrainingText:
    """The conversations of a run, what the target saw in them, and which of them are trained on."""

    conversations: Conversations
    cache: FeatureCache
    train: list[int]  # indices
    feature_scale: Tensor  # [F*H] float32, gives each context feature unit size; a checkpoint's replaces it in place
    held_out_percent: int  # of the conversations, recorded


@dataclass(kw_only=True)
class Trainer:
    """One run: the drafter, the frozen embedding and head of the target, the text, and the folder of checkpoints."""

    model: DFlashDrafter
    embedding: Tensor  # [V, H] input embedding, float32
    head: Tensor  # [V, H] LM head
    text: TrainingText
    config: TrainingConfig
    folder: Path
    evaluate: Callable[[DFlashDrafter], dict[str, Any]]  # held-out scores, JSON-ready

    def run(self) -> None:
        """Train from the newest checkpoint (or the current weights) to `config.steps`.

        The caller asks first whether the checkpoint is of this configuration and these data: `check_resumable`.

        Raises:
            ValueError: the checkpoint is of a drafter of another shape, or none is intact.
            DiskFullError: there is no room for a checkpoint; the one before stays.
        """
        config, optimizer = self.config, DrafterOptimizer(self.model, self.config.optimizer)
        saved = load_checkpoint(self.folder)
        step = self._restore(saved, optimizer) if saved else 0
        meter = ProgressMeter(config.steps, step, float(saved["seconds"]) if saved else 0.0)
        if saved and "meter" in saved:
            meter.load_state_dict(saved["meter"])
        curve = TrainingCurve(self.folder / "curve.jsonl")
        curve.cut_after(step)
        # A kill during an evaluation leaves its checkpoint without a score.
        if step and not curve.is_scored(step):
            self._evaluate_if_due(step, curve)
        schedule = Schedule(config.learning_rate, config.steps, config.warmup_steps, config.cooldown)
        while step < config.steps:
            result = self._gradient_step(step)
            optimizer.step(schedule.at(step))
            step += 1
            meter.add(result)
            if step % config.log_every == 0 or step == config.steps:
                curve.append(meter.line(step, schedule.at(step - 1)))
            if step % config.checkpoint_every == 0 or step == config.steps:
                self._save(step, optimizer, meter)
            self._evaluate_if_due(step, curve)

    def _evaluate_if_due(self, step: int, curve: TrainingCurve) -> None:
        if step % self.config.evaluate_every == 0 or step == self.config.steps:
            curve.append({"step": step, "held_out": self.evaluate(self.model)})

    def _gradient_step(self, step: int) -> StepLoss:
        config, shape = self.config, self.model.config
        batch = batch_at(
            step,
            config.seed,
            self.text.conversations,
            self.text.cache,
            self.text.train,
            rows=config.rows,
            anchors_per_row=config.anchors_per_row,
            num_drafts=shape.num_drafts,
            uncertainty=config.anchor_uncertainty,
        )
        device = self.embedding.device
        generator = torch.Generator().manual_seed(config.seed * 9_000_011 + step)
        candidates = choose_candidates(batch, shape.vocab_size, config.sampled_vocabulary, generator).to(device)
        batch = batch.to(device)
        embeds = self.embedding[self.model.block_token_ids(batch.anchor_tokens)].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            hidden = self.model(embeds, self._features(batch.features, generator), batch.anchors)
        result = distillation_loss(
            hidden,
            self.head,
            batch,
            candidates,
            depth_weights=config.depth_decay ** torch.arange(shape.num_drafts, device=device),
            soft_share=config.soft_share,
            confidence_floor=config.confidence_floor,
        )
        torch.autograd.backward(result.loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return result

    def _features(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """Context features at unit size, with the configured uniform noise."""
        scaled = stored.float() * self.text.feature_scale.to(stored.device)
        if not self.config.feature_noise:
            return scaled
        noise = (2 * torch.rand(scaled.shape, generator=generator) - 1) * self.config.feature_noise
        return scaled + noise.to(scaled.device)

    def _restore(self, saved: dict[str, Any], optimizer: DrafterOptimizer) -> int:
        """Take over a checkpoint; returns its step."""
        if saved["config"] != self.model.config.to_hf_config():
            raise ValueError(
                f"a resumed run must keep the drafter's shape; {self.folder} holds a checkpoint of "
                f"{saved['config']}. Pass the same shape flags, or another --work folder."
            )
        self.model.load_state_dict(saved["model"])
        self.text.feature_scale.copy_(saved["feature_scale"])
        if saved["plan"]["optimizer"] == self.config.optimizer:
            optimizer.load_state_dict(saved["optimizer"])
        else:
            print(f"{self.config.optimizer} starts without the state of {saved['plan']['optimizer']}", flush=True)
        step, planned, steps = int(saved["step"]), saved["plan"]["steps"], self.config.steps
        was = "" if planned == steps else f" (planned were {planned}: the learning rate follows the new plan)"
        print(f"resuming at step {step} of {steps}{was}", flush=True)
        return step

    def _save(self, step: int, optimizer: DrafterOptimizer, meter: ProgressMeter) -> None:
        payload = {
            "step": step,
            "seconds": meter.seconds(),
            "meter": meter.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "feature_scale": self.text.feature_scale,
            "config": self.model.config.to_hf_config(),
            "plan": asdict(self.config),
            "data": asdict(data_record(self.text.conversations, self.text.held_out_percent)),
        }
        save_checkpoint(self.folder, step, payload)
