"""A tiny random pair with the structure of a published one; its drafter is trained for seconds, so that guesses hit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ddtree_sglang.training.model.drafter_config import drafter_config_for
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane import hybrid_targets, mobius
from tests.device_lane.multimodal import MULTIMODAL, save_as_multimodal
from tests.device_lane.pairs import MASK_TOKEN, TinyPair, fill, one_thread, save_tokenizer, train
from tests.device_lane.sliding_drafter import state_kinds, with_sliding_layers
from tests.support.drafter_parts import add_biases, rotate_as, state_parts
from tests.support.published import Published
from tests.support.published_configs import FULL, SLIDING

NUM_DRAFT_LAYERS = 2
TRAINING_STEPS = 60
HEAD_DIM = 16
"""Of the drafter."""
WINDOW = 24
"""Of the drafter's sliding layers: longer than a block, as published ones are, and shorter than some texts."""
_CLASSES = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
}
"""Hugging Face's, by model type; SGLang has configurations of its own for some."""


def read_layers(published: Published) -> tuple[int, ...]:
    """Layers of the tiny target that its drafter reads: as many as the published one, where it has as many."""
    readable = published.tiny["num_hidden_layers"] - 1  # the last one is never a feature
    return tuple(range(readable))[-len(published.target_layer_ids) :]


def layer_kinds(published: Published) -> tuple[str, ...]:
    """Of the tiny drafter's layers: a window in the first one, if the published drafter has any."""
    return (SLIDING if SLIDING in published.draft["layer_types"] else FULL, *[FULL] * (NUM_DRAFT_LAYERS - 1))


def make_tiny(
    folder: Path,
    published: Published,
    seed: int = 0,
    vocabulary: int | None = None,
    training_steps: int = TRAINING_STEPS,
) -> TinyPair:
    """Make the pair and write it to `folder`: target, drafter, tokenizer.

    The drafter reads as many layers as the published one where the target has them; it has two of its own, which is
    another number.
    """
    fields = dict(published.tiny)
    if vocabulary is not None:
        fields["vocab_size"] = vocabulary
    with one_thread():
        config, model = (getattr(transformers, name) for name in _CLASSES[fields.pop("model_type")])
        target = model(config(**fields))
        shares = published.kind == mobius.ARCHITECTURE
        if shares:
            mobius.share_banks(target)
        fill(target, seed)
        if target.config.tie_word_embeddings:
            _tell_head_from_embedding(target, seed)
        drafter = _drafter(target, published, seed)
        train(drafter, target, seed, training_steps)
    # What is shared is saved in each layer's name.
    weights = {name: one.clone() for name, one in target.state_dict().items()} if shares else None
    target.save_pretrained(folder / "target", state_dict=weights)
    save_tokenizer(folder / "target", target.config.vocab_size)
    if published.kind in MULTIMODAL:
        save_as_multimodal(folder / "target", published.kind)
    if shares:
        mobius.save_banks(folder / "target", target)
    if target.config.model_type == "qwen3_next":
        hybrid_targets.write_rope_as_published(folder / "target")
    export_drafter(drafter, folder / "draft", torch.float32)
    state_kinds(folder / "draft", drafter)
    if published.draft.get("attention_bias"):
        add_biases(drafter, folder / "draft", seed)
    if "rope_parameters" in published.draft:
        state_parts(folder / "draft", rope_parameters=published.draft["rope_parameters"])
    return TinyPair(target.float().eval(), drafter.eval(), str(folder / "target"), str(folder / "draft"))


def _drafter(target: Any, published: Published, seed: int) -> DFlashDrafter:
    torch.manual_seed(seed)
    config = drafter_config_for(
        target.config,
        mask_token_id=MASK_TOKEN,
        mask_token=f"w{MASK_TOKEN}",
        target_layer_ids=read_layers(published),
        num_layers=NUM_DRAFT_LAYERS,
        block_size=published.draft["block_size"],
    )
    heads = {"num_attention_heads": published.heads_per_kv_head, "num_key_value_heads": 1, "head_dim": HEAD_DIM}
    rope = published.draft.get("rope_parameters")
    if rope is not None:
        heads["rope_theta"] = rope["rope_theta"]
    drafter = with_sliding_layers(DFlashDrafter(replace(config, **heads)), layer_kinds(published), WINDOW)
    return drafter if rope is None else rotate_as(drafter, rope)


@torch.no_grad()
def _tell_head_from_embedding(target: Any, seed: int) -> None:
    """Random signs in the last norm: a tied head would else repeat the token that it has just read."""
    norm = target.model.norm.weight
    signs = torch.randint(0, 2, norm.shape, generator=torch.Generator().manual_seed(seed))
    # Norms of hybrid targets weigh by one more than they say.
    norm.copy_(2.0 * signs - 1 - int(target.config.model_type in hybrid_targets.CACHED))
