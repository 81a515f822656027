"""Target families: what admission reads of each, as `config.json`, small, with the fields that its rules look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LAYERS = 4
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
_GDN: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_KDA: dict[str, Any] = {
    "linear_attn_config": {
        "full_attn_layers": [4],
        "kda_layers": [1, 2, 3],
        "head_dim": 16,
        "num_heads": 4,
        "short_conv_kernel_size": 4,
    }
}


def _with_images(model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    """Of a published class, whose text model is a part."""
    text_config = {**_SHAPE, "model_type": f"{model_type}_text", **text}
    vision_config = {"depth": 1, "hidden_size": 32, "out_hidden_size": 64}
    return {"model_type": model_type, "text_config": text_config, "vision_config": vision_config}


@dataclass(frozen=True)
class Family:
    """A kind of target.

    Attributes:
        architecture: SGLang's class.
        config: fields of `config.json`, besides the architecture.
        state: what its layers are, for the document.
        window: of its sliding layers, where only the loaded model tells.
        sinks: windows of the layers with attention sinks, which only the loaded model tells; -1 without a window.
        text_alone: SGLang's class of the same layers without images, which scenes run too, and which takes no adapters.
    """

    architecture: str
    config: dict[str, Any]
    state: str
    window: int | None = None
    sinks: tuple[int, ...] = ()
    text_alone: str = ""

    @property
    def config_json(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        shape = {"torch_dtype": _SHAPE["torch_dtype"]} if "text_config" in self.config else _SHAPE
        return {**shape, "architectures": [self.architecture], **self.config}


FAMILIES: dict[str, Family] = {
    "Llama": Family("LlamaForCausalLM", {"model_type": "llama"}, "full attention"),
    "Qwen3": Family("Qwen3ForCausalLM", {"model_type": "qwen3"}, "full attention"),
    "Qwen3-MoE": Family("Qwen3MoeForCausalLM", {"model_type": "qwen3_moe", **_EXPERTS}, "full attention, experts"),
    "Qwen3-VL MoE": Family(
        "Qwen3VLMoeForConditionalGeneration",
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                **_SHAPE,
                "model_type": "qwen3_vl_moe_text",
                **_EXPERTS,
                "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            },
            "vision_config": {"depth": 1, "hidden_size": 64, "out_hidden_size": 64},
            "tie_word_embeddings": False,
        },
        "full attention, experts, images",
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        {
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        },
        "windows and full attention, attention sinks, experts",
        sinks=(127, -1),
    ),
    "Gemma 3": Family(
        "Gemma3ForCausalLM",
        {"model_type": "gemma3_text", "sliding_window": 128, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
        "windows and full attention",
        window=127,
    ),
    "Gemma 4": Family(
        "Gemma4ForCausalLM",
        {
            "model_type": "gemma4_text",
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 16,
        },
        "windows and full attention",
        window=127,
    ),
    "Mellum": Family(
        "MellumForCausalLM",
        {
            "model_type": "mellum",
            "num_local_experts": 4,
            **{name: value for name, value in _EXPERTS.items() if name != "num_experts"},
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        },
        "windows and full attention, experts",
        window=127,
    ),
    "Qwen3.5 / 3.6": Family(
        "Qwen3_5ForConditionalGeneration",
        _with_images("qwen3_5", _GDN),
        "GDN and full attention",
        text_alone="Qwen3_5ForCausalLM",
    ),
    "Qwen3.5 / 3.6 MoE": Family(
        "Qwen3_5MoeForConditionalGeneration",
        _with_images("qwen3_5_moe", {**_EXPERTS, "shared_expert_intermediate_size": 32, **_GDN}),
        "GDN and full attention, experts",
        text_alone="Qwen3_5MoeForCausalLM",
    ),
    "Qwen3-Next": Family("Qwen3NextForCausalLM", {"model_type": "qwen3_next", **_EXPERTS, **_GDN}, "GDN, experts"),
    "LFM2": Family("Lfm2ForCausalLM", {"model_type": "lfm2"}, "short convolutions and full attention"),
    "LFM2-MoE": Family(
        "Lfm2MoeForCausalLM", {"model_type": "lfm2_moe", **_EXPERTS}, "short convolutions and full attention, experts"
    ),
    "Nemotron-H": Family(
        "NemotronHForCausalLM",
        {"model_type": "nemotron_h", "hybrid_override_pattern": "M*M-", "mamba_num_heads": 4, "mamba_head_dim": 16},
        "Mamba2 and full attention",
    ),
    "Kimi-Linear": Family(
        "KimiLinearForCausalLM",
        {"model_type": "kimi_linear", **_LATENT, **_KDA},
        "KDA and latent attention",
    ),
    "Kimi-K3": Family(
        "KimiK3ForConditionalGeneration",
        {
            "model_type": "kimi_k3",
            "text_config": {**_SHAPE, "model_type": "kimi_linear", **_LATENT, **_KDA},
            "vision_config": {"vt_hidden_size": 64},
        },
        "KDA and latent attention, experts, images",
    ),
    "DeepSeek / Kimi-K2": Family("DeepseekV3ForCausalLM", {"model_type": "deepseek_v3", **_LATENT}, "latent attention"),
    "Kimi-K2.5": Family(
        "KimiK25ForConditionalGeneration",
        {
            "model_type": "kimi_k25",
            "text_config": {**_SHAPE, "model_type": "deepseek_v3", **_LATENT},
            "vision_config": {"vt_hidden_size": 64},
        },
        "latent attention, images",
    ),
    "Llama 4": Family(
        "Llama4ForCausalLM",
        {
            "model_type": "llama4_text",
            "attention_chunk_size": 8192,
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
        },
        "attention in chunks, experts",
    ),
}
"""By the names of the table. A family that is not here has not been looked at."""

PLAIN = "Llama"
"""What features are asked of."""

PLAIN_DRAFTER: dict[str, Any] = {
    **FAMILIES["Qwen3"].config_json,
    "architectures": ["DFlashDraftModel"],
    "num_hidden_layers": 2,
    "block_size": 8,
    "num_target_layers": LAYERS,
    "dflash_config": {"mask_token_id": 4, "target_layer_ids": [0, 2]},
}
"""A drafter's `config.json` that fits targets of `LAYERS` layers."""
