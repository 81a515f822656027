"""The fifteen pairs that DFlash's authors list (z-lab/dflash, README), and a tiny random pair of each that is served.

A drafter's fields are as public repositories quote them from its `config.json`; what was not found there is None. Of
the targets those of Qwen3-4B and Llama-3.1-8B were compared with such quotations, the others are what is generally
known of them. No checkpoint was read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Draft:
    """What is known of a drafter.

    Attributes:
        block_size: P, the bonus token and the drafts.
        num_layers: its own.
        target_layer_ids: layers whose output it reads.
        mask_token_id: the token of a position to be drafted.
        attention: of its layers.
    """

    block_size: int | None = None
    num_layers: int | None = None
    target_layer_ids: tuple[int, ...] | None = None
    mask_token_id: int | None = None
    attention: str | None = None


@dataclass(frozen=True)
class Published:
    """A pair of the list.

    Attributes:
        drafter: its name at z-lab.
        family: of the target, as `families.FAMILIES` names it.
        layers: of the target.
        heads: query heads, KV heads and their dimension, "latent" where there are none.
        rope: base and kind of the target's rotation.
        tied: whether the target's LM head is its embedding.
        draft: what is known of the drafter.
        tiny: fields of a small target's `config.json` with this structure; empty where none is run.
        architecture: SGLang's class, where it is another than the family's.
    """

    drafter: str
    family: str
    layers: int
    heads: str
    rope: str | None = None
    tied: bool | None = None
    draft: Draft = field(default_factory=Draft)
    tiny: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None


_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DENSE = Draft(16, 5, (1, 9, 17, 25, 33), 151669, "full")


def _gdn(drafter: str, layers: int, draft: Draft | None = None, *, experts: bool = False) -> Published:
    """Of Qwen3.5 and 3.6: three layers of GDN to one of attention."""
    family, kind = "Qwen3.5 / 3.6", "Qwen3_5ForConditionalGeneration"
    if experts:
        family, kind = "Qwen3.5 / 3.6 MoE", "Qwen3_5MoeForConditionalGeneration"
    return Published(drafter, family, layers, "GDN", draft=draft or Draft(), architecture=kind)


PAIRS: dict[str, Published] = {
    "Qwen3-4B": Published(
        "Qwen3-4B-DFlash-b16",
        "Qwen3",
        36,
        "32 / 8 / 128",
        "1e6",
        True,
        Draft(16),
        {**_TINY, "model_type": "qwen3", "hidden_size": 40, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "Qwen3-8B": Published(
        "Qwen3-8B-DFlash-b16",
        "Qwen3",
        36,
        "32 / 8 / 128",
        "1e6",
        False,
        _DENSE,
        {**_TINY, "model_type": "qwen3", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "Qwen3-Coder-30B-A3B": Published(
        "Qwen3-Coder-30B-A3B-DFlash",
        "Qwen3-MoE",
        48,
        "32 / 4 / 128",
        "1e7",
        False,
        Draft(16, 8, (1, 12, 23, 34, 45), 151669, "full"),
        {
            **_TINY,
            "model_type": "qwen3_moe",
            "num_attention_heads": 8,
            "rope_parameters": {"rope_theta": 1e7, "rope_type": "default"},
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "Llama-3.1-8B": Published(
        "LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        "Llama",
        32,
        "32 / 8 / 128",
        "5e5, llama3 x 8",
        False,
        Draft(10),
        {
            **_TINY,
            "model_type": "llama",
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_theta": 5e5,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "gpt-oss-20b": Published(
        "gpt-oss-20b-DFlash",
        "gpt-oss",
        24,
        "64 / 8 / 64",
        "1.5e5, yarn x 32",
        False,
        Draft(8, 8, (1, 6, 11, 16, 21), 200000, "full"),
    ),
    "gpt-oss-120b": Published("gpt-oss-120b-DFlash", "gpt-oss", 36, "64 / 8 / 64", "1.5e5, yarn x 32", False),
    "Qwen3-Coder-Next": Published(
        "Qwen3-Coder-Next-DFlash", "Qwen3-Next", 48, "16 / 2 / 256, GDN", draft=Draft(num_layers=8)
    ),
    "Qwen3.5-4B": _gdn("Qwen3.5-4B-DFlash", 32),
    "Qwen3.5-9B": _gdn("Qwen3.5-9B-DFlash", 32, Draft(16, target_layer_ids=(1, 8, 15, 22, 29), mask_token_id=248070)),
    "Qwen3.5-27B": _gdn("Qwen3.5-27B-DFlash", 64, Draft(16, 5, (1, 16, 31, 46, 61), 248070, "full")),
    "Qwen3.5-35B-A3B": _gdn("Qwen3.5-35B-A3B-DFlash", 40, experts=True),
    "Qwen3.5-122B-A10B": _gdn("Qwen3.5-122B-A10B-DFlash", 48, experts=True),
    "Qwen3.6-27B": _gdn(
        "Qwen3.6-27B-DFlash", 64, Draft(16, 5, (1, 16, 31, 46, 61), 248070, "4 with a window of 2048, 1 full")
    ),
    "Qwen3.6-35B-A3B": _gdn("Qwen3.6-35B-A3B-DFlash", 40, Draft(16, 8, (1, 10, 19, 28, 37), 248070), experts=True),
    "Kimi-K2.5": Published(
        "Kimi-K2.5-DFlash",
        "Kimi-K2.5",
        61,
        "latent",
        draft=Draft(8, 6, (1, 12, 24, 35, 47, 58), 163838),
    ),
}
SERVED = tuple(name for name, pair in PAIRS.items() if pair.tiny)
"""Those that run on the CPU platform, each with its own fields."""
SCENES = {
    "gpt-oss": ("gpt-oss", "fa3"),
    "Qwen3-Next": ("qwen3-next", "fa3"),
    "Qwen3.5 / 3.6": ("gated-delta-images", "fa3"),
    "Qwen3.5 / 3.6 MoE": ("gated-delta-experts", "fa3"),
    "Kimi-K2.5": ("kimi", "triton"),
}
"""By family, the device lane's scenes of the others, and their backends; of the same name with `-stock`, the chain."""
_LANE = "tests/device_lane/test_scenes.py::test_scene"
TESTS: dict[str, tuple[str, ...]] = {
    name: (f"tests/e2e/test_published_pairs.py::test_chain_and_tree_are_plain_decoding[{name}]",)
    if name in SERVED
    else tuple(f"{_LANE}[{SCENES[pair.family][0]}{end}]" for end in ("", "-stock"))
    for name, pair in PAIRS.items()
}
"""What runs of each pair."""
DEFAULT_BLOCK = 16
