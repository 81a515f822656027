"""What training starts from: layers of the target, random weights, or a drafter that was exported before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ddtree_sglang.training.model.drafter_config import DrafterChoices, DrafterConfig
from ddtree_sglang.training.model.drafter_init import start_from_target
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import load_drafter
from ddtree_sglang.training.model.target_check import check_target
from ddtree_sglang.training.stages.target import TargetFolder


class Start(NamedTuple):
    """Where a run begins, before its target is loaded."""

    shape: DrafterConfig
    layers: tuple[int, ...] | None  # of the target, which the drafter's are copies of; None: copies of none
    drafter: DFlashDrafter | None  # goes on being trained

    def model(self, source: Any, feature_scale: torch.Tensor) -> DFlashDrafter:
        """The drafter of step 0. `source` is the target; `feature_scale [F*H]` is what training multiplies features by.

        Raises:
            ValueError: the exported drafter is one for another target.
        """
        if self.drafter is not None:
            check_fit(self.drafter, source)
            with torch.no_grad():
                # An exported drafter has its scale in its projection, as engines hand over raw features.
                self.drafter.fc.weight.div_(feature_scale)
            return self.drafter.train()
        model = DFlashDrafter(self.shape)
        if self.layers is not None:
            start_from_target(model, source, self.layers)
        return model


def choose_start(target: TargetFolder, choices: DrafterChoices) -> Start:
    """Look at what was chosen, and at the target's folder without its weights.

    Raises:
        ValueError: the target, the drafter to go on from or a flag does not fit; the message says what to do.
    """
    if choices.start_draft is None:
        shape, layers = check_target(target.folder, target.tokenizer(), choices)
        return Start(shape, None if choices.random_start else layers, None)
    if replace(choices, start_draft=None) != DrafterChoices():
        raise ValueError(
            "--start-draft brings its own shape: leave out --target-layers, --start-layers, --random-start, "
            "--block-size and --mask-token."
        )
    drafter = load_drafter(choices.start_draft)
    shape = drafter.config
    if shape.selector_rank:
        raise ValueError(
            f"{choices.start_draft} scores pairs of candidates, and the train stage does not: pass the drafter "
            "that the selector was made for, and run the selector stage afterwards."
        )
    found = target.tokenizer().get_vocab().get(shape.mask_token)
    if found != shape.mask_token_id:
        raise ValueError(
            f"the mask token of {choices.start_draft}, {shape.mask_token!r}, must have the id {shape.mask_token_id} in "
            f"the target's vocabulary, found {found}: pass the drafter's own target."
        )
    return Start(shape, None, drafter)


def check_fit(model: DFlashDrafter, source: Any) -> None:
    """Raises ValueError where the drafter is one for another target than `source`."""
    names = ("hidden_size", "vocab_size")
    found = {name: (getattr(model.config, name), getattr(source.config, name)) for name in names}
    found["num_target_layers"] = (model.config.num_target_layers, source.config.num_hidden_layers)
    wrong = [f"{name} {own} and {its}" for name, (own, its) in found.items() if own != its]
    if wrong:
        raise ValueError(f"the drafter must be one for this target, they differ in {', '.join(wrong)}: pass its own.")
