"""The training loop: batches in, checkpoints and a curve out, resumable after a kill at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddtree_sglang.demo.anchor_batches import batch_at
from ddtree_sglang.demo.checkpoint import load_checkpoint, save_checkpoint
from ddtree_sglang.demo.conversations import Conversations
from ddtree_sglang.demo.distillation import StepLoss, choose_candidates, distillation_loss
from ddtree_sglang.demo.drafter_model import DFlashDrafter
from ddtree_sglang.demo.features import FeatureCache
from ddtree_sglang.demo.optimizer import DrafterOptimizer, Schedule


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
    evaluate: Callable[[DFlashDrafter], dict[str, Any]] | None = None

    def run(self) -> None:
        """Train from the newest checkpoint (or the current weights) to `plan.steps`."""
        optimizer = DrafterOptimizer(self.model, self.plan.optimizer)
        step, seconds = self._resume(optimizer)
        plan = self.plan
        schedule = Schedule(plan.learning_rate, plan.steps, plan.warmup_steps, plan.cooldown)
        meter = ProgressMeter(plan, step, seconds)
        while step < plan.steps:
            result = self._gradient_step(step)
            optimizer.step(schedule.at(step))
            step += 1
            meter.add(result)
            if step % plan.log_every == 0 or step == plan.steps:
                self._log(meter.line(step, schedule.at(step - 1)))
            if step % plan.checkpoint_every == 0 or step == plan.steps:
                self._save(step, optimizer, meter.seconds())
            if self.evaluate and (step % plan.evaluate_every == 0 or step == plan.steps):
                self._log({"step": step, "held_out": self.evaluate(self.model)})

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

    def _resume(self, optimizer: DrafterOptimizer) -> tuple[int, float]:
        saved = load_checkpoint(self.folder)
        if saved is None:
            return 0, 0.0
        if saved["config"] != self.model.config.to_hf_config():
            raise ValueError(
                f"a resumed run must keep the drafter's shape; {self.folder} holds a checkpoint of "
                f"{saved['config']}. Pass the same shape flags, or another --work folder."
            )
        self.model.load_state_dict(saved["model"])
        self.feature_scale.copy_(saved["feature_scale"])
        optimizer.load_state_dict(saved["optimizer"])
        print(f"resuming at step {saved['step']} of {self.plan.steps}", flush=True)
        return int(saved["step"]), float(saved["seconds"])

    def _save(self, step: int, optimizer: DrafterOptimizer, seconds: float) -> None:
        payload = {
            "step": step,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "feature_scale": self.feature_scale,
            "config": self.model.config.to_hf_config(),
            "plan": asdict(self.plan),
        }
        save_checkpoint(self.folder, step, payload)

    def _log(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "curve.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")


class ProgressMeter:
    """Averages since the last line: loss, accuracy by depth, labels per second, time left."""

    def __init__(self, plan: TrainingPlan, step: int, seconds: float) -> None:
        self.plan, self.before = plan, seconds
        self.started = time.monotonic()
        self.first_step = step
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.correct, self.counted = torch.zeros(1), torch.zeros(1)
        self.since = time.monotonic()

    def add(self, result: StepLoss) -> None:
        """Count one step."""
        self.losses.append(float(result.loss.detach()))
        self.correct = self.correct + result.correct.cpu()
        self.counted = self.counted + result.counted.cpu()

    def seconds(self) -> float:
        """Wall time of the run so far, earlier processes included."""
        return self.before + time.monotonic() - self.started

    def line(self, step: int, learning_rate: float) -> dict[str, Any]:
        """The record to show; starts a new average."""
        now = time.monotonic()
        accuracy = (self.correct / self.counted.clamp_min(1)).tolist()
        pace = (now - self.started) / max(1, step - self.first_step)
        record = {
            "step": step,
            "loss": round(sum(self.losses) / len(self.losses), 4),
            "accuracy_by_depth": [round(value, 4) for value in accuracy],
            "labels_per_s": round(float(self.counted.sum()) / max(1e-9, now - self.since)),
            "learning_rate": round(learning_rate, 7),
            "seconds": round(self.seconds()),
            "seconds_left": round(pace * (self.plan.steps - step)),
        }
        self._clear()
        return record
