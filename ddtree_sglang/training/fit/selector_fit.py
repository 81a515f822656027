"""Fit a selector to what a frozen drafter proposes; goes on from the newest checkpoint after a kill at any moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.described import described
from ddtree_sglang.training.fit.checkpoint import load_checkpoint, save_checkpoint
from ddtree_sglang.training.fit.drafted_blocks import DraftedBlocks
from ddtree_sglang.training.fit.optimizer import Schedule
from ddtree_sglang.training.fit.selector_head import SelectorHead, SelectorLoss, selector_loss
from ddtree_sglang.training.fit.training_curve import TrainingCurve


@dataclass(frozen=True)
class SelectorConfig:
    """The numbers of a selector and of its run; a checkpoint records them, and a resumed run must have the same."""

    rank: int = described(64, "width of the selector's tables", flag="--selector-rank")
    top_k: int = described(16, "candidates per depth that it scores", flag="--selector-top-k")
    blocks: int = described(256, "blocks per step", flag="--selector-blocks")
    steps: int = described(300, "optimizer steps", flag="--selector-steps")
    learning_rate: float = described(1e-4, "largest learning rate of the gate", flag="--selector-learning-rate")
    tables_rate: float = described(
        0.3, "learning rate of the tables, as a factor of the gate's; 0 leaves the target's pairs", flag="--tables-rate"
    )
    strength: float = described(0.3, "weight of the target's pairs at the start, of 1 in its logits")
    depth_decay: float = described(
        0.75, "weight of a draft position in the loss, as a factor of the one before it", flag="--selector-depth-decay"
    )
    anchors: int = described(
        128, "blocks per conversation that the drafter proposes for, at most", flag="--selector-anchors"
    )
    seed: int = 0


@dataclass(kw_only=True)
class SelectorTrainer:
    """One run: the head, the blocks that it learns from and those that show how it does, the folder of checkpoints."""

    head: SelectorHead
    train: DraftedBlocks
    held_out: DraftedBlocks
    config: SelectorConfig
    folder: Path
    log_every: int
    checkpoint_every: int
    identity: str  # digest of what the head learns from

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to `config.steps`.

        Raises:
            ValueError: the checkpoint is of another configuration, drafter or text.
        """
        config, optimizer = self.config, self._optimizer()
        step = self._restore(optimizer)
        curve = TrainingCurve(self.folder / "curve.jsonl")
        curve.cut_after(step)
        schedule = Schedule(config.learning_rate, config.steps)
        while step < config.steps:
            result = selector_loss(self.head, self.train.chosen(self._rows(step)), self._depth_weights())
            torch.autograd.backward(result.loss)
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * schedule.at(step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % self.log_every == 0 or step == config.steps:
                curve.append({"step": step, "loss": round(result.loss.item(), 4), "held_out": self._held_out()})
            if step % self.checkpoint_every == 0 or step == config.steps:
                self._save(step, optimizer)

    def _optimizer(self) -> torch.optim.Optimizer:
        head, rate = self.head, self.config.tables_rate
        tables = [head.predecessor.weight, head.successor.weight]
        groups = [
            {"params": [head.hidden_projection.weight], "factor": 1.0},
            {"params": [table.requires_grad_(rate > 0) for table in tables], "factor": rate},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)

    def _rows(self, step: int) -> torch.Tensor:
        """The blocks of a step: an epoch's permutation, which follows from the seed."""
        count = min(self.config.blocks, len(self.train))
        epoch, position = divmod(step, len(self.train) // count)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        return order[position * count : (position + 1) * count]

    def _depth_weights(self) -> torch.Tensor:
        return self.config.depth_decay ** torch.arange(self.train.labels.shape[1])

    @torch.no_grad()
    def _held_out(self) -> dict[str, Any]:
        """Loss, and by depth how often the text's token is the best of the candidates that hold it: before, after."""
        parts = [self._scored(rows) for rows in torch.arange(len(self.held_out)).split(self.config.blocks)]
        counted = sum((part.counted for part in parts), torch.zeros(1))
        return {
            "loss": round(float(torch.stack([part.loss for part in parts]).mean()), 4),
            "without": _rounded(sum((part.right_without for part in parts), torch.zeros(1)) / counted.clamp_min(1)),
            "with": _rounded(sum((part.right for part in parts), torch.zeros(1)) / counted.clamp_min(1)),
        }

    def _scored(self, rows: torch.Tensor) -> SelectorLoss:
        return selector_loss(self.head, self.held_out.chosen(rows), self._depth_weights())

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        """Take over the newest checkpoint, if there is one; returns its step."""
        saved = load_checkpoint(self.folder)
        if saved is None:
            return 0
        found, wanted = (saved["plan"], saved["identity"]), (asdict(self.config), self.identity)
        if found != wanted:
            raise ValueError(
                f"a resumed run must keep its flags, its drafter and its text; {self.folder} has {found}, wanted is "
                f"{wanted}: pass the old ones, or remove the folder."
            )
        self.head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
        print(f"resuming the selector at step {saved['step']} of {self.config.steps}", flush=True)
        return int(saved["step"])

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        payload = {
            "step": step,
            "head": self.head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "plan": asdict(self.config),
            "identity": self.identity,
        }
        save_checkpoint(self.folder, step, payload)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
