"""A tiny random pair with the structure of a published one; its drafter is trained for seconds, so that guesses hit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ddtree_sglang.training.model.drafter_config import drafter_config_for
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane.pairs import MASK_TOKEN, TinyPair, fill, one_thread, save_tokenizer, train
from tests.support.published import DEFAULT_BLOCK, Published

NUM_DRAFT_LAYERS = 2
TRAINING_STEPS = 60


def make_tiny(
    folder: Path,
    published: Published,
    seed: int = 0,
    vocabulary: int | None = None,
    training_steps: int = TRAINING_STEPS,
) -> TinyPair:
    """Make the pair and write it to `folder`: target, drafter, tokenizer.

    The drafter reads as many layers as the published one, or five; it has two of its own, which is another number.
    """
    fields = dict(published.tiny)
    if vocabulary is not None:
        fields["vocab_size"] = vocabulary
    with one_thread():
        target = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        fill(target, seed)
        if target.config.tie_word_embeddings:
            _tell_head_from_embedding(target, seed)
        torch.manual_seed(seed)
        drafter = DFlashDrafter(
            drafter_config_for(
                target.config,
                mask_token_id=MASK_TOKEN,
                mask_token=f"w{MASK_TOKEN}",
                target_layer_ids=tuple(range(len(published.draft.target_layer_ids or range(5)))),
                num_layers=NUM_DRAFT_LAYERS,
                block_size=published.draft.block_size or DEFAULT_BLOCK,
            )
        )
        train(drafter, target, seed, training_steps)
    target.save_pretrained(folder / "target")
    save_tokenizer(folder / "target", target.config.vocab_size)
    export_drafter(drafter, folder / "draft", torch.float32)
    return TinyPair(target.float().eval(), drafter.eval(), str(folder / "target"), str(folder / "draft"))


@torch.no_grad()
def _tell_head_from_embedding(target: Any, seed: int) -> None:
    """Random signs in the last norm: a tied head would else repeat the token that it has just read."""
    signs = torch.randint(0, 2, target.model.norm.weight.shape, generator=torch.Generator().manual_seed(seed))
    target.model.norm.weight.copy_(2.0 * signs - 1)
