"""Other classes of SGLang's models that hand their layers' states to a block drafter: what DDTREE does with each.

A class is admitted where each of its layers reads a token, its position and the keys that the mask shows, by a kind of
attention that a family of `families.FAMILIES` was shown with. Nobody has run these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW = 128
"""Tokens, of the configurations that have windows."""
_KINDS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
}


@dataclass(frozen=True)
class Other:
    """A class, and what becomes of a server with it.

    Attributes:
        why: words of the refusal; of a class that is admitted, which attention it has.
        model_type: of its configuration, by which SGLang or transformers finds the class of that; "" where neither has
            one, so that what is said of its attention was read in the model's code; of it SGLang knows the name alone.
        fields: of that configuration, where defaults would not do.
        is_refused: at start, by its configuration.
        is_latent: SGLang takes it for one with latent attention.
        needed: id of a test of what would go wrong without the refusal.
        scene: of the device lane, with text alone.
    """

    why: str
    model_type: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    is_refused: bool = False
    is_latent: bool = False
    needed: str = ""
    scene: str = ""

    @property
    def window(self) -> int | None:
        """Of its sliding layers, which share the server with others."""
        return WINDOW if self.why.startswith("windows and full attention") else None


_BY_POSITION = "queries scaled by their position, which a node has"
_INDEXER = "an indexer that picks some"
_NO_STRATEGY = "no way to keep states in its prefix cache"
_LACKING = "whose class in SGLang asks for them by a method that its layers lack"
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
_ADMISSION_LIFTED = "tests/engine/admission/test_refusals_lifted.py::"
_REFUSED_CLASSES = "tests/engine/admission/test_refused_classes.py::"
_NO_HEAD = f"{_REFUSED_CLASSES}test_sglang_ends_where_it_drafts_for_a_class_without_a_head_at_its_top"
_LACKING_NEEDED = (
    f"{_ADMISSION_LIFTED}test_sglang_ends_over_layers_of_qwen3_vl_that_lack_what_their_class_asks_them_for"
)
_ENDS = "which this SGLang ends over at its warm-up, whatever the algorithm"
_ENDS_NEEDED = f"{_REFUSED_CLASSES}test_sglang_ends_over_minicpm_v_at_its_warm_up"
_PICKS = "tests/kernels/test_refused_indexers.py::"
_CONVOLUTIONS = "tests/kernels/test_refused_convolutions.py::"
_MIMO = "windows and full attention, keys wider than values, sinks, experts; on `fa3` and `triton` alone"
_MIMO_FIELDS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [1, 0] * 2,
    "sliding_window_size": WINDOW,
    "attention_chunk_size": WINDOW,  # which no layer reads
}
_LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


def _full(model_type: str) -> Other:
    return Other("full attention, Llama's class or one of the same layers", model_type)


def _windows(model_type: str, **fields: Any) -> Other:
    return Other("windows and full attention, as gpt-oss's and Gemma 4's", model_type, fields or _KINDS)


def _recurrent(model_type: str, needed: str = "", **fields: Any) -> Other:
    return Other(
        "whose states have not been shown to follow a tree", model_type, fields, is_refused=True, needed=needed
    )


def _refused(why: str, model_type: str = "", needed: str = "", **fields: Any) -> Other:
    return Other(why, model_type, fields, is_refused=True, needed=needed)


OTHERS: dict[str, Other] = {
    "BeamForCausalLM": Other(f"windows and full attention, there {_BY_POSITION}", "beam", _KINDS),
    "Cosmos3ForConditionalGeneration": _refused(_LACKING, "cosmos3_omni", _LACKING_NEEDED),
    "DeepseekV2ForCausalLM": Other("latent attention, DeepSeek-V3's class", "deepseek_v2", is_latent=True),
    "DeepseekV32ForCausalLM": _refused(
        _INDEXER,
        "deepseek_v32",
        f"{_PICKS}test_a_verify_picks_among_all_nodes_before_one",
        index_topk=8,
        index_head_dim=16,
    ),
    "Gemma4ForConditionalGeneration": _windows("gemma4", text_config={"model_type": "gemma4_text", **_KINDS}),
    "Gemma4UnifiedForConditionalGeneration": _windows(
        "gemma4_unified", text_config={"model_type": "gemma4_unified_text", **_KINDS}
    ),
    "Glm4MoeLiteForCausalLM": Other("latent attention, DeepSeek's layers", "glm4_moe_lite", is_latent=True),
    "Glm5NextForConditionalGeneration": _refused(
        "latent attention behind an indexer",
        "glm5_next",
        needed=f"{_PICKS}test_a_verify_picks_among_all_nodes_before_one",
    ),
    "GlmMoeDsaForCausalLM": _refused(
        _INDEXER, "glm_moe_dsa", f"{_PICKS}test_a_verify_picks_among_all_nodes_before_one"
    ),
    "IQuestCoderForCausalLM": _full(""),
    # SGLang has its configuration, which asks a running server.
    "InklingForConditionalGeneration": _refused(
        "whose layers convolve keys, values and outputs",
        local_layer_ids=[0],
        needed=f"{_CONVOLUTIONS}test_inkling_keeps_behind_a_node_what_was_before_it",
    ),
    "InternLM3ForCausalLM": _full(""),
    "InternS1ProForConditionalGeneration": Other("full attention, rotations of each head by position"),
    "InternS2MobiusForConditionalGeneration": Other(
        "GDN and full attention, Qwen3.5's layers, some of which share their experts; without adapters, and SGLang "
        "lets rounds not overlap beside a prefix cache",
        "interns2_mobius",
        scene="intern-s2-mobius",
    ),
    "InternS2PreviewForConditionalGeneration": Other(
        "GDN and full attention, experts: Qwen3.5's class; without adapters", "intern_s2_preview", scene="intern-s2"
    ),
    "KimiK3LinearForCausalLM": _refused(_NO_STRATEGY, "kimi_linear", "refused-kimi-k3-text", **_LATENT),
    "LagunaForCausalLM": _refused(
        "whose class tells SGLang of no windows",
        "laguna",
        "tests/device_lane/test_backends_on_references.py::test_fa3_does_not_place_a_window_that_it_was_not_told_of",
        **_KINDS,
    ),
    "Lfm2VlForConditionalGeneration": Other(
        "short convolutions and full attention, LFM2's layers; not on `triton`, without adapters, and with rounds that "
        "do not overlap or without a prefix cache",
        "lfm2_vl",
        scene="short-convolution-vl",
    ),
    "MiMoV2FlashForCausalLM": Other(_MIMO, "mimo_v2_flash", _MIMO_FIELDS, scene="mimo-v2-flash"),
    "MiMoV2ForCausalLM": Other(_MIMO, "mimo_v2_flash", _MIMO_FIELDS, scene="mimo-v2"),
    # Its versions before 4.6, without a state, hand no layers out, as the loaded model tells (`target_checks`).
    "MiniCPMV": _refused(_ENDS, "minicpmv4_6", _ENDS_NEEDED),
    "MiniCPMV4_6ForConditionalGeneration": _refused(_ENDS, "minicpmv4_6", _ENDS_NEEDED),
    "MiniCPMV4_7ForConditionalGeneration": _refused(_ENDS, "minicpmv4_7", _ENDS_NEEDED),
    "MiniMaxM3SparseForConditionalGeneration": _refused(
        "whose sparse layers pick blocks of keys",
        "minimax_m3_vl",
        f"{_REFUSED_CLASSES}test_sglang_picks_blocks_of_keys_without_a_trees_mask",
        text_config=SHAPE,
    ),
    "Ministral3ForCausalLM": Other(f"full attention, {_BY_POSITION}", "ministral3"),
    "MistralForCausalLM": _full("mistral"),
    "MistralLarge3ForCausalLM": Other(
        f"latent attention, DeepSeek-V3's class, {_BY_POSITION}", "deepseek_v3", is_latent=True
    ),
    "MuseGlimmerForCausalLM": _windows("muse_glimmer"),
    "MuseGlimmerForConditionalGeneration": _windows("muse_glimmer"),
    "MuseSparkForConditionalGeneration": _windows("muse_spark", text_config=_KINDS),
    "NanbeigeForCausalLM": Other(
        "full attention in layers that run several times, each time with keys of their own", "nanbeige"
    ),
    "NemotronHPuzzleForCausalLM": Other(
        "Mamba2 and full attention, Nemotron-H's layers, of whose experts each layer has its own number; without "
        "adapters",
        "nemotron_h_puzzle",
        {"block_configs": []},
        scene="mamba-puzzle",
    ),
    "NemotronH_Nano_Omni_Reasoning_V3": _recurrent(
        "NemotronH_Nano_Omni_Reasoning_V3", f"{_NO_HEAD}[NemotronH_Nano_Omni_Reasoning_V3]"
    ),
    "NemotronH_Nano_VL_V2": _recurrent("NemotronH_Nano_VL_V2", f"{_NO_HEAD}[NemotronH_Nano_VL_V2]"),
    "NemotronH_Omni_Reasoning_V3": Other(
        "Mamba2 and full attention, Nemotron-H's text; without adapters", "nemotron_h_omni", scene="mamba-omni"
    ),
    "Phi3ForCausalLM": Other("full attention; LongRoPE is refused past its short factors", "phi3"),
    "Qwen3VLForConditionalGeneration": _refused(_LACKING, "qwen3_vl", _LACKING_NEEDED),
    "Qwen4ExpForConditionalGeneration": _refused(
        "which reads the tokens before one by their place",
        "qwen4_exp",
        f"{_CONVOLUTIONS}test_qwen4_exp_convolves_a_node_with_those_before_it",
    ),
    "TeleFLMForCausalLM": _full(""),
}
"""By SGLang's name of the class."""

NO_TARGETS = {
    "DeepseekV3ForCausalLMNextN",
    "Gemma4AssistantForCausalLM",
    "Gemma4UnifiedAssistantForCausalLM",
    "Glm4MoeLiteForCausalLMNextN",
    "Glm5NextForConditionalGenerationNextN",
    "GlmMoeDsaForCausalLMNextN",
    "Lfm2BidirectionalModel",
    "LlamaForCausalLMEagle",
    "LlamaForCausalLMEagle3",
    "MiMoV2MTP",
    "MistralForCausalLMEagle",
    "MistralLarge3ForCausalLMEagle",
    "NemotronHForCausalLMMTP",
    "Qwen3MoeForCausalLMMTP",
    "Qwen3NextForCausalLMMTP",
}
"""Those that inherit the method and generate nothing by themselves: drafters and an encoder."""
