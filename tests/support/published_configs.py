"""Configurations of the published pairs' targets and drafters, as far as they were found, and of their tiny likenesses.

A field has the name that Hugging Face's `config.json` gives it. Where one is smaller in a tiny target, the ratios that
kernels branch on stay: heads to heads of keys, heads of values to heads of keys, the period of the layers' kinds.
"""

from __future__ import annotations

from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


def draft(
    target: dict[str, Any],
    layers: int,
    reads: tuple[int, ...],
    heads: tuple[int, int, int],
    *,
    block_size: int = 16,
    intermediate_size: int | None = None,
    mask: int | None = None,
    window: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A drafter's `config.json`. `heads`: their number, that of keys, their size; the last layer has no window."""
    kinds = [FULL] * layers if window is None else [*[SLIDING] * (layers - 1), FULL]
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": block_size,
        "num_hidden_layers": layers,
        "num_target_layers": target["num_hidden_layers"],
        "hidden_size": target["hidden_size"],
        "intermediate_size": intermediate_size or target["intermediate_size"],
        "vocab_size": target["vocab_size"],
        **dict(zip(("num_attention_heads", "num_key_value_heads", "head_dim"), heads, strict=True)),
        "layer_types": kinds,
        **({} if window is None else {"sliding_window": window, "use_sliding_window": True}),
        "dflash_config": {"target_layer_ids": list(reads), **({} if mask is None else {"mask_token_id": mask})},
        **more,
    }


_SHARED: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
ON_CPU: dict[str, Any] = {
    **_SHARED,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
IN_LANE: dict[str, Any] = {**_SHARED, "hidden_size": 32, "intermediate_size": 48}


def dense(model_type: str, hidden: int, intermediate: int, layers: int, vocab: int, **more: Any) -> dict[str, Any]:
    """Full attention; 8 heads of keys, of size 128."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": vocab,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "tie_word_embeddings": False,
        **more,
    }


QWEN3_4B = dense("qwen3", 2560, 9728, 36, 151936, tie_word_embeddings=True)
QWEN3_8B = dense("qwen3", 4096, 12288, 36, 151936)
CODER = dense(
    "qwen3_moe",
    2048,
    6144,
    48,
    151936,
    num_key_value_heads=4,
    rope_parameters={"rope_theta": 1e7, "rope_type": "default"},
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    norm_topk_prob=True,
)
_LLAMA_ROPE = {
    "rope_theta": 5e5,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA = dense("llama", 4096, 14336, 32, 128256, rope_parameters=_LLAMA_ROPE, max_position_embeddings=131072)


GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}


def gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "rope_parameters": dict(GPT_OSS_ROPE),
        "layer_types": [SLIDING, FULL] * (layers // 2),
        "sliding_window": 128,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def tiny_gpt_oss(experts: int) -> dict[str, Any]:
    """Windows of eight tokens, which prompts are longer than; six layers, of which five can be read."""
    return {
        **IN_LANE,
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, FULL] * 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "sliding_window": 8,
        "num_local_experts": experts,
    }


OSS_20B, OSS_120B = gpt_oss(24, 32), gpt_oss(36, 128)


def hybrid_kinds(layers: int) -> list[str]:
    """Each fourth layer attends."""
    return [FULL if index % 4 == 3 else "linear_attention" for index in range(layers)]


def hybrid(
    model_type: str, hidden: int, layers: int, heads: tuple[int, int], value_heads: int, **more: Any
) -> dict[str, Any]:
    """Three layers with a gated delta net to one that attends: `heads` and those of keys, and gates what it says."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 256,
        "full_attention_interval": 4,
        "layer_types": hybrid_kinds(layers),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "vocab_size": 248320,
        "max_position_embeddings": 262144,
        "attn_output_gate": True,
        "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "rope_theta": 1e7,
            "rope_type": "default",
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **more,
    }


def experts(count: int, used: int, width: int) -> dict[str, Any]:
    """Experts, and one that all tokens share."""
    return {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width,
        "norm_topk_prob": True,
    }


def tiny_hybrid(target: dict[str, Any], layers: int) -> dict[str, Any]:
    """As many heads to one of keys, and of values to one of keys."""
    smaller = {
        **IN_LANE,
        "num_hidden_layers": layers,
        "layer_types": hybrid_kinds(layers),
        "num_attention_heads": target["num_attention_heads"] // target["num_key_value_heads"],
        "num_key_value_heads": 1,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": target["linear_num_value_heads"] // target["linear_num_key_heads"],
        "max_position_embeddings": 512,
    }
    if "num_experts" in target:
        smaller |= {"num_experts": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    return smaller


_DENSE_TEXT, _EXPERTS_TEXT = "qwen3_5_text", "qwen3_5_moe_text"
Q35_4B = hybrid(_DENSE_TEXT, 2560, 32, (16, 4), 32, intermediate_size=9216, tie_word_embeddings=True)
Q35_9B = hybrid(_DENSE_TEXT, 4096, 32, (16, 4), 32, intermediate_size=12288)
Q35_27B = hybrid(_DENSE_TEXT, 5120, 64, (24, 4), 48, intermediate_size=17408)
Q35_35B = hybrid(_EXPERTS_TEXT, 2048, 40, (16, 2), 32, **experts(256, 8, 512))
Q35_122B = hybrid(_EXPERTS_TEXT, 3072, 48, (32, 2), 64, **experts(256, 8, 1024))
NEXT = hybrid(
    "qwen3_next",
    2048,
    48,
    (16, 2),
    32,
    intermediate_size=5120,
    vocab_size=151936,
    rope_parameters={"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.25},
    **experts(512, 10, 512),
)
KIMI_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 50000.0,
    "factor": 64.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
KIMI: dict[str, Any] = {
    "model_type": "kimi_k2",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 163840,
    "max_position_embeddings": 262144,
    "rope_parameters": KIMI_ROPE,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.827,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


TINY_KIMI: dict[str, Any] = {
    **IN_LANE,
    "model_type": "deepseek_v3",
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "moe_intermediate_size": 32,
}
"""Hugging Face has no class of its own for `kimi_k2`, which is DeepSeek-V3's."""
