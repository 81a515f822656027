"""The tiny pair with recurrent layers: a Qwen3.5 whose first and last layers are gated delta nets.

    python -m benchmarks recurrent_pair FOLDER [--measure]

Writes FOLDER/target and FOLDER/draft. The layer that attends, the drafter and the tokens' codes are those of
`tiny_pair`. What the gated delta nets say about the next token is random and weighs as much as other layers' words: a
state that is not its own path's changes tokens. They forget slowly, and heads have the size of published models, 128,
for which SGLang's kernels are built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.tiny_pair import (
    FAR,
    FAR_WEIGHTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    NEAR_WEIGHTS,
    OUT,
    RANDOM_WEIGHT,
    SHARPNESS,
    TARGET_SCALE,
    Weights,
    config_of_target,
    run,
    save_pair,
)

ATTENDS = 1
"""The layer that attends; SGLang counts: every second one does."""
KEY_HEADS, VALUE_HEADS, STATE_DIM, KERNEL = 2, 4, 128, 4
KEY_DIM, VALUE_DIM = KEY_HEADS * STATE_DIM, VALUE_HEADS * STATE_DIM
DECAYS = (0.01, 0.1)
"""Least and greatest rate: a token's share after ten others is between nine tenths and two fifths."""
STATE_WEIGHT = 1.2


def config_of_recurrent_target() -> dict[str, object]:
    """Its config.json."""
    kinds = ["full_attention" if index == ATTENDS else "linear_attention" for index in range(LAYERS)]
    rope = {"rope_theta": 100.0, "rope_type": "default", "partial_rotary_factor": 1.0}
    return config_of_target() | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "layer_types": kinds,
        "full_attention_interval": ATTENDS + 1,
        "rope_parameters": rope,
        "partial_rotary_factor": 1.0,
        "attn_output_gate": True,
        "linear_conv_kernel_dim": KERNEL,
        "linear_key_head_dim": STATE_DIM,
        "linear_value_head_dim": STATE_DIM,
        "linear_num_key_heads": KEY_HEADS,
        "linear_num_value_heads": VALUE_HEADS,
        "mamba_ssm_dtype": "float32",
    }


def recurrent_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The target's tensors by their Hugging Face names; norms weigh by one more than they say."""
    made = Weights(seed)
    norm = torch.full((HIDDEN,), -1.0)
    norm[OUT] = TARGET_SCALE - 1
    state = {"model.embed_tokens.weight": made.embeddings(), "lm_head.weight": made.head(), "model.norm.weight": norm}
    for index in range(LAYERS):
        name = f"model.layers.{index}"
        part = _attention(made) if index == ATTENDS else _gated_delta_net(made)
        state |= {f"{name}.{key}": one for key, one in part.items()}
        state |= {
            f"{name}.mlp.gate_proj.weight": made.random(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.up_proj.weight": made.random(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.down_proj.weight": made.to_out(INTERMEDIATE, RANDOM_WEIGHT),
            f"{name}.input_layernorm.weight": torch.zeros(HIDDEN),
            f"{name}.post_attention_layernorm.weight": torch.zeros(HIDDEN),
        }
    return state


def _attention(made: Weights) -> dict[str, torch.Tensor]:
    """`tiny_pair`'s heads that look back. Each has a gate that is always half open, so what they say is doubled."""
    query, key, value = made.looking_back((FAR[0] - 1, FAR[1] - 1, 0, 1))
    eye = torch.eye(HEAD_DIM)
    far = [eye * weight for weight in FAR_WEIGHTS]
    near = [weight * made.orthogonal(HEAD_DIM) for weight in NEAR_WEIGHTS]
    gated = torch.cat([query.view(HEADS, HEAD_DIM, HIDDEN), torch.zeros(HEADS, HEAD_DIM, HIDDEN)], 1)
    sharp = torch.full((HEAD_DIM,), math.sqrt(SHARPNESS) - 1)
    return {
        "self_attn.q_proj.weight": gated.flatten(0, 1),
        "self_attn.k_proj.weight": key,
        "self_attn.v_proj.weight": value,
        "self_attn.o_proj.weight": 2 * made.saying([*far, *near]),
        "self_attn.q_norm.weight": sharp,
        "self_attn.k_norm.weight": sharp,
    }


def _gated_delta_net(made: Weights) -> dict[str, torch.Tensor]:
    rates = torch.empty(VALUE_HEADS).uniform_(*map(math.log, DECAYS), generator=made.generator)
    return {
        "linear_attn.in_proj_qkv.weight": made.random(2 * KEY_DIM + VALUE_DIM, HIDDEN),
        "linear_attn.in_proj_z.weight": made.random(VALUE_DIM, HIDDEN),
        "linear_attn.in_proj_b.weight": made.random(VALUE_HEADS, HIDDEN),
        "linear_attn.in_proj_a.weight": made.random(VALUE_HEADS, HIDDEN),
        "linear_attn.conv1d.weight": made.random(2 * KEY_DIM + VALUE_DIM, 1, KERNEL),
        "linear_attn.A_log": rates,
        "linear_attn.dt_bias": made.random(VALUE_HEADS, 1).flatten(),
        "linear_attn.norm.weight": torch.ones(STATE_DIM),
        "linear_attn.out_proj.weight": made.to_out(VALUE_DIM, STATE_WEIGHT),
    }


def write_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write FOLDER/target and FOLDER/draft in bfloat16; returns both."""
    return save_pair(folder, recurrent_weights(seed), config_of_recurrent_target(), seed)


def main(argv: Sequence[str]) -> int:
    """Write the pair and print its two folders."""
    return run(argv, (__doc__ or "").split("\n", 1)[0], write_pair)
