"""Shape of a DFlash drafter, and its two-way mapping to the `config.json` that SGLang reads.

The field names of `to_hf_config` are those of SGLang 0.5.23, `srt/speculative/dflash_utils.py`
(`parse_dflash_draft_config`) and `srt/models/dflash.py` (`DFlashDraftModel`). Knows nothing about weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddtree_sglang.training.described import described, layer_ids

ARCHITECTURE = "DFlashDraftModel"
SELECTOR_ARCHITECTURE = "DFlash2DraftModel"
"""Of a drafter whose head scores pairs of candidates (`candidate_selector`)."""


@dataclass(frozen=True)
class DrafterChoices:
    """What may be chosen of a drafter; the rest of its shape is the target's."""

    target_layers: tuple[int, ...] | None = described(
        None,
        "target layers whose output is a feature; default: five, evenly spread (1,8,15,22,28 of 30)",
        parse=layer_ids,
    )
    start_layers: tuple[int, ...] | None = described(
        None, "target layers that the drafter's start as; default: the last three (27,28,29 of 30)", parse=layer_ids
    )
    random_start: bool = described(False, "start from random weights; of --start-layers only their number counts")
    start_draft: Path | None = described(
        None, "folder of an exported drafter to go on from; its shape is kept, and no other flag of this group passed"
    )
    block_size: int = described(8, "tokens of a block: the bonus token and the drafts after it")
    mask_token: str = described("<reponame>", "token of the target's vocabulary that text never holds")


@dataclass(frozen=True)
class DrafterConfig:
    """Everything that fixes the shape of a drafter; lengths in tokens, widths in elements.

    `target_layer_ids` are 0-based target layers whose *output* residual stream is a context feature. The
    last target layer cannot be one: SGLang captures a feature as the input of the following layer. A drafter of
    `selector_rank` 0 has no head that scores pairs.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    block_size: int
    mask_token_id: int
    mask_token: str
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    selector_rank: int = 0
    selector_top_k: int = 0  # candidates per depth that the selector scores

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise ValueError(
                f"block_size must be at least 2 (one bonus token, one draft), got {self.block_size}: use 8 or 16."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}: change one of them."
            )
        outside = [i for i in self.target_layer_ids if not 0 <= i < self.num_target_layers - 1]
        if outside or not self.target_layer_ids:
            raise ValueError(
                f"target_layer_ids must be layers 0 to {self.num_target_layers - 2} of a target with "
                f"{self.num_target_layers} layers, got {list(self.target_layer_ids)}: the last one is "
                "never captured by SGLang; choose earlier ones."
            )

    @property
    def num_drafts(self) -> int:
        """Draft positions per block, D = block_size - 1: the first slot holds the bonus token."""
        return self.block_size - 1

    @property
    def feature_size(self) -> int:
        """Width of one token's concatenated context features."""
        return len(self.target_layer_ids) * self.hidden_size

    def to_hf_config(self) -> dict[str, Any]:
        """The dictionary to write as `config.json` of the exported drafter."""
        head = {"selector_rank": self.selector_rank, "selector_top_k": self.selector_top_k}
        return {
            "architectures": [SELECTOR_ARCHITECTURE if self.selector_rank else ARCHITECTURE],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "block_size": self.block_size,
            "dflash_config": {
                "block_size": self.block_size,
                "mask_token": self.mask_token,
                "mask_token_id": self.mask_token_id,
                "num_target_layers": self.num_target_layers,
                "target_layer_ids": list(self.target_layer_ids),
                **(head if self.selector_rank else {}),
            },
            "dtype": "bfloat16",
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_target_layers": self.num_target_layers,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> DrafterConfig:
        """Read back what `to_hf_config` wrote; raises KeyError on a field that is missing."""
        dflash = config["dflash_config"]
        return cls(
            hidden_size=config["hidden_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            num_target_layers=dflash["num_target_layers"],
            target_layer_ids=tuple(dflash["target_layer_ids"]),
            block_size=dflash["block_size"],
            mask_token_id=dflash["mask_token_id"],
            mask_token=dflash["mask_token"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=config["rope_parameters"]["rope_theta"],
            max_position_embeddings=config["max_position_embeddings"],
            selector_rank=dflash.get("selector_rank", 0),
            selector_top_k=dflash.get("selector_top_k", 0),
        )


def drafter_config_for(
    target: Any,
    *,
    mask_token_id: int,
    mask_token: str,
    target_layer_ids: tuple[int, ...],
    num_layers: int = 3,
    block_size: int = 8,
) -> DrafterConfig:
    """A drafter whose layers have the shapes of the target's own.

    `target` is the Hugging Face config of a Llama- or Qwen-shaped causal language model.
    """
    head_dim = getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads
    # One rope for all layers, or one by type of layer.
    rope = target.rope_parameters.get("full_attention", target.rope_parameters)
    return DrafterConfig(
        hidden_size=target.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=target.intermediate_size,
        vocab_size=target.vocab_size,
        num_target_layers=target.num_hidden_layers,
        target_layer_ids=target_layer_ids,
        block_size=block_size,
        mask_token_id=mask_token_id,
        mask_token=mask_token,
        rms_norm_eps=target.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        max_position_embeddings=target.max_position_embeddings,
    )
