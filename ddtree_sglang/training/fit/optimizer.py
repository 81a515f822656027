"""Optimizer and learning-rate schedule of the drafter.

AdamW or Muon updates the weight matrices; AdamW always updates the norm weights. Muon orthogonalises the momentum and
needs fewer steps, but on a CPU its matrix products cost as much as the gradients of a small batch. The learning rate
follows from the step, or from the clock: linear warm-up, constant, linear cool-down to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rates over steps 0 .. total-1; the cool-down takes the last `cooldown` share of them."""

    peak: float
    total: int
    warmup: int = 30
    cooldown: float = 0.6

    def at(self, step: int) -> float:
        """Learning rate of a step."""
        falling = (self.total - step) / max(1.0, self.cooldown * self.total)
        return _rate(self.peak, step, self.warmup, falling)


@dataclass(frozen=True)
class TimedSchedule:
    """Learning rates of a run that ends by the clock; the cool-down takes the last `cooldown` share of its seconds."""

    peak: float
    seconds: float
    warmup: int = 30  # steps
    cooldown: float = 0.6

    def at(self, step: int, elapsed_s: float) -> float:
        """Learning rate of a step that begins after so many seconds."""
        falling = (1 - elapsed_s / self.seconds) / max(1e-9, self.cooldown)
        return _rate(self.peak, step, self.warmup, falling)


def _rate(peak: float, step: int, warmup: int, falling: float) -> float:
    """The share of the peak that the warm-up allows at a step, or the cool-down, where less is left."""
    rising = (step + 1) / max(1, warmup)
    return peak * max(0.0, min(1.0, rising, falling))


class DrafterOptimizer:
    """Muon for matrices and AdamW for vectors (or AdamW for both), stepped together."""

    def __init__(self, model: nn.Module, kind: str, weight_decay: float = 0.01) -> None:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(vectors, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        ]
        if kind == "muon":
            # Updates scaled to AdamW's size, so that one learning rate serves both parts.
            muon = torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
        elif kind == "adamw":
            self.parts.append(torch.optim.AdamW(matrices, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True))
        else:
            raise ValueError(f"optimizer must be muon or adamw, got {kind!r}.")

    def step(self, learning_rate: float) -> None:
        """Apply the gradients at this learning rate and clear them."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of both parts, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for part, part_state in zip(self.parts, state, strict=True):
            part.load_state_dict(part_state)
