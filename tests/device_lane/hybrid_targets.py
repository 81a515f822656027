"""Tiny random targets some of whose layers keep a recurrent state, as Hugging Face's classes for plain torch.

Three layers, of which the second attends: two layers with a state show whether each reads its own. A state has to
reach far and to differ between siblings, so decays are slow and what a token writes is large.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.device_lane import wide_keys

NUM_LAYERS = 3

_GATED_DELTA: dict[str, Any] = {
    "num_hidden_layers": NUM_LAYERS,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "full_attention_interval": 2,  # how SGLang reads the same
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "rope_parameters": {"rope_theta": 1e7, "rope_type": "default", "partial_rotary_factor": 0.25},
}


_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_SHORT_CONVOLUTION: dict[str, Any] = {
    "num_hidden_layers": NUM_LAYERS,
    "layer_types": ["conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "block_auto_adjust_ff_dim": False,
    "norm_eps": 1e-6,
    "rms_norm_eps": 1e-6,  # the drafter's
}
_MAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "conv_kernel": 4,
    "use_mamba_kernels": False,
    "layer_norm_epsilon": 1e-6,
    "rms_norm_eps": 1e-6,  # the drafter's
}
_BLOCKS: tuple[dict[str, Any], ...] = (
    {"block_type": "mamba"},
    {"block_type": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    {"block_type": "attention"},
    {"block_type": "mamba"},
    {"block_type": "moe", "n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
)
"""Of Nemotron-H-Puzzle, whose layers of experts differ."""
_PUZZLE: dict[str, Any] = {
    **_MAMBA,
    "num_hidden_layers": len(_BLOCKS),
    "layers_block_type": [block["block_type"] for block in _BLOCKS],
    "moe_shared_expert_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "n_group": 1,
    "topk_group": 1,
}
KIMI_K3: dict[str, Any] = {
    "num_hidden_layers": NUM_LAYERS,
    "linear_attn_config": {
        "kda_layers": [1, 3],
        "full_attn_layers": [2],
        "num_heads": 2,
        "head_dim": 16,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
        "gate_lower_bound": -5.0,
    },
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "mla_use_nope": True,
    "mla_use_output_gate": True,
    "attn_res_block_size": 2,
    "hidden_act": "situ",
    "activation_situ_beta": 4.0,
    "activation_situ_linear_beta": 25.0,
    "first_k_dense_replace": 1,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_expert_hidden_size": 24,
    "latent_moe_use_norm": True,
    "rms_norm_eps": 1e-5,  # what SGLang's norm behind KDA has, whatever it is told
}
"""Kimi-K3's text: KDA and latent attention, experts in a narrower space behind a dense layer, blocks of two layers."""


def _qwen3_5(shape: Mapping[str, Any]) -> Any:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**{**shape, **_GATED_DELTA}))


def _qwen3_5_wide(shape: Mapping[str, Any]) -> Any:
    """With heads for two ranks."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**{**shape, **_GATED_DELTA, **heads}))


def _lfm2(shape: Mapping[str, Any]) -> Any:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(Lfm2Config(**{**shape, **_SHORT_CONVOLUTION}))


def _lfm2_moe(shape: Mapping[str, Any]) -> Any:
    """A dense layer, then experts."""
    from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM

    return Lfm2MoeForCausalLM(Lfm2MoeConfig(**{**shape, **_SHORT_CONVOLUTION, **_EXPERTS, "num_dense_layers": 1}))


def _nemotron_h(shape: Mapping[str, Any]) -> Any:
    from transformers import NemotronHConfig, NemotronHForCausalLM

    return NemotronHForCausalLM(NemotronHConfig(**{**shape, **_MAMBA}))


def _nemotron_h_puzzle(shape: Mapping[str, Any]) -> Any:
    """Hugging Face's class has one configuration for all layers."""
    from transformers import NemotronHConfig, NemotronHForCausalLM
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE

    target = NemotronHForCausalLM(NemotronHConfig(**{**shape, **_PUZZLE}))
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(_BLOCKS):
        if block["block_type"] == "moe":
            mixer = NemotronHMoE(NemotronHConfig(**{**shape, **_PUZZLE, **block}), index)
            bias = mixer.gate.e_score_correction_bias
            bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
            target.model.layers[index].mixer = mixer
    return target


def _kimi_k3(shape: Mapping[str, Any]) -> Any:
    from tests.device_lane.kimi_k3 import KimiK3LinearForCausalLM, KimiK3TextConfig

    return KimiK3LinearForCausalLM(KimiK3TextConfig(**{**shape, **KIMI_K3}))


def write_rope_as_published(folder: Path) -> None:
    """Give a saved Qwen3-Next the base of its rotation where SGLang reads it; Hugging Face writes it elsewhere."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def name_layers_as_published(folder: Path, architecture: str) -> None:
    """Give a saved Nemotron-H the names of layers that SGLang reads; Hugging Face reads those, and writes others."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"layers_block_type": _MAMBA["layers_block_type"], "mamba_n_groups": _MAMBA["n_groups"]}
    if architecture == "nemotron_h_puzzle":
        config |= {"layers_block_type": _PUZZLE["layers_block_type"], "block_configs": _BLOCKS}
        config |= {"architectures": [OTHER_CLASSES[architecture]], "model_type": architecture}
    for name in ("mtp_layers_block_type", "time_step_limit"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


MAKERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "qwen3_5": _qwen3_5,
    "qwen3_5_wide": _qwen3_5_wide,
    "lfm2": _lfm2,
    "lfm2_vl": _lfm2,
    "lfm2_moe": _lfm2_moe,
    "nemotron_h": _nemotron_h,
    "nemotron_h_omni": _nemotron_h,
    "nemotron_h_puzzle": _nemotron_h_puzzle,
    **dict.fromkeys(wide_keys.CLASSES, wide_keys.make),
    "kimi_k3": _kimi_k3,
    "kimi_k3_text": _kimi_k3,
}
"""By architecture: a target of a shape, as `pairs` has them."""

NEMOTRON_H = ("nemotron_h", "nemotron_h_omni", "nemotron_h_puzzle")
AS_PUBLISHED: dict[str, Callable[[Path], None]] = {
    **{name: partial(name_layers_as_published, architecture=name) for name in NEMOTRON_H},
    **{name: partial(wide_keys.state_as_published, of_class=of) for name, of in wide_keys.CLASSES.items()},
}
"""What a saved target's `config.json` is changed by, where Hugging Face writes another one than SGLang reads."""

WITH_IMAGES = {
    "kimi_k3": "KimiK3ForConditionalGeneration",
    "lfm2_vl": "Lfm2VlForConditionalGeneration",
    "nemotron_h_omni": "NemotronH_Omni_Reasoning_V3",
}
"""Those that are saved as the text part of a class that takes images."""
OTHER_CLASSES = {**WITH_IMAGES, **wide_keys.CLASSES, "nemotron_h_puzzle": "NemotronHPuzzleForCausalLM"}
"""Those that are saved as another class than Hugging Face's of the text."""

KIMI_LINEAR = "kimi_linear"
"""Model type of Kimi-K3's text."""
CACHED = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
"""Model types that are faster with a cache: their recurrence over a text is a loop over tokens."""


def own_values(model_type: str, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor | None:
    """What a parameter of a recurrent layer begins with; None for those that other layers have as well.

    Args:
        model_type: of the model's configuration.
        name: of the parameter in the model.
        shape: its shape.
        generator: what is drawn from.
    """
    if model_type == KIMI_LINEAR and name.endswith(("A_log", "dt_bias")):
        # Of -5 times a sigmoid: a channel keeps between a half and all but a hundredth of what it has.
        drawn = torch.randn(shape, generator=generator)
        return 0.2 * drawn if name.endswith("A_log") else drawn - 4
    if name.endswith("A_log"):
        # A token's share after ten others is between a half and nine tenths.
        return torch.empty(shape).uniform_(math.log(0.01), math.log(0.1), generator=generator)
    if name.endswith(("dt_bias", "conv1d.bias")):
        return torch.randn(shape, generator=generator)
    if model_type in CACHED and "norm.weight" in name and "linear_attn.norm" not in name:
        # These weigh by one more than they say.
        return torch.full(shape, 0.5 if "q_norm" in name else 0.0)
    return None
