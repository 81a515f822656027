"""The export stage: the drafter of the newest checkpoint as the folder that SGLang loads, with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, with_raw_features


class TrainedDrafter(NamedTuple):
    """The drafter of a checkpoint and what belongs to it."""

    model: DFlashDrafter
    feature_scale: torch.Tensor  # [F*H] float32
    step: int
    held_out_percent: int | None  # None: a checkpoint that does not record it


def trained_drafter(work: Path) -> TrainedDrafter:
    """The drafter of the newest intact checkpoint in `work`.

    Raises:
        ValueError: there is no checkpoint, or none that is intact.
    """
    saved = load_checkpoint(work / "checkpoints")
    if saved is None:
        raise ValueError(f"no checkpoint in {work / 'checkpoints'}: run the train stage first.")
    model = DFlashDrafter(DrafterConfig.from_hf_config(saved["config"]))
    model.load_state_dict(saved["model"])
    print(f"checkpoint of step {saved['step']}, {saved['seconds']:.0f} s of training", flush=True)
    held_out_percent = saved.get("data", {}).get("held_out_percent")
    return TrainedDrafter(model.eval(), saved["feature_scale"], int(saved["step"]), held_out_percent)


def export(work: Path, output: Path, dtype: torch.dtype) -> None:
    """Write the newest checkpoint's drafter to the folder `output`, its weights in `dtype`; prints the folder.

    Raises:
        ValueError: there is no intact checkpoint, or a weight is not finite.
    """
    trained = trained_drafter(work)
    export_drafter(with_raw_features(trained.model, trained.feature_scale), output, dtype)
    write_manifest(output)
    print(output)
