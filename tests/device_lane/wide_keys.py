"""A tiny MiMo-V2: keys wider than values, windows with sinks and more heads of keys, one dense layer, then experts.

Heads have the published widths, for which Triton's kernel goes over keys in two parts (extend_attention.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.device_lane.sliding_drafter import WINDOW

CLASSES = {"mimo_v2_flash": "MiMoV2FlashForCausalLM", "mimo_v2": "MiMoV2ForCausalLM"}
"""SGLang's, of the same layers: the second takes images and sounds, too, where its configuration has them."""
_KEY_WIDTH, _VALUE_WIDTH = 192, 128
_TURNED = 0.334  # of a key
_BASE, _BASE_OF_WINDOWS = 5e6, 1e4
_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "attention_value_scale": 0.707,
}


def make(shape: Mapping[str, Any]) -> Any:
    """A target of `shape`, as `pairs` has them; half a window's heads of keys are those of the other layers."""
    from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

    rotations = {
        kind: {"rope_theta": base, "rope_type": "default", "partial_rotary_factor": _TURNED}
        for kind, base in (("full_attention", _BASE), ("sliding_attention", _BASE_OF_WINDOWS))
    }
    config = MiMoV2FlashConfig(
        **{**shape, **_EXPERTS, "head_dim": _KEY_WIDTH, "v_head_dim": _VALUE_WIDTH, "rope_parameters": rotations},
        layer_types=["full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse"],
        sliding_window=WINDOW,
        rms_norm_eps=1e-6,
    )
    target = MiMoV2FlashForCausalLM(config)
    # Experts are chosen with it and weighted without.
    target.model.layers[1].mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.2, -0.1, 0.1, 0.0]))
    return target


def state_as_published(folder: Path, of_class: str) -> None:
    """Give a saved target the fields that SGLang reads, which the published ones have and Hugging Face's class not.

    SGLang counts the tokens before a query as its window, Hugging Face the query as well.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("layer_types", "mlp_layer_types"):
        config.pop(name, None)
    config |= {
        "architectures": [of_class],
        # One rotation, as the published class of configuration has it (--trust-remote-code), and not one of each kind
        # of layers, as Transformers' own has it, which SGLang's model cannot read.
        "rope_parameters": {"rope_type": "default", "rope_theta": _BASE},
        "layernorm_epsilon": config["rms_norm_eps"],
        "rope_theta": _BASE,
        "swa_rope_theta": _BASE_OF_WINDOWS,
        "partial_rotary_factor": _TURNED,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "sliding_window": WINDOW - 1,
        "sliding_window_size": WINDOW - 1,
        # Of no layer's, and published all the same.
        "attention_chunk_size": WINDOW,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_num_attention_heads": config["num_attention_heads"],
        "swa_num_key_value_heads": 2 * config["num_key_value_heads"],
        "swa_head_dim": _KEY_WIDTH,
        "swa_v_head_dim": _VALUE_WIDTH,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_shared_experts": None,
        "routed_scaling_factor": None,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
