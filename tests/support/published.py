"""The fifteen pairs that DFlash's authors list (z-lab/dflash, README), and a tiny random pair of each that is served.

A drafter's fields are as public repositories quote or list them from its `config.json`; what was not found there is
left out. A target's are as its card and such quotations have them. No checkpoint was read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.families import FAMILIES
from tests.support.published_configs import (
    CODER,
    KIMI,
    KIMI_ROPE,
    LLAMA,
    NEXT,
    ON_CPU,
    OSS_20B,
    OSS_120B,
    Q35_4B,
    Q35_9B,
    Q35_27B,
    Q35_35B,
    Q35_122B,
    QWEN3_4B,
    QWEN3_8B,
    TINY_KIMI,
    draft,
    tiny_gpt_oss,
    tiny_hybrid,
)


@dataclass(frozen=True)
class Published:
    """A pair of the list.

    Attributes:
        drafter: its name at z-lab.
        family: of the target, as `families.FAMILIES` names it.
        target: fields of the `config.json` of its text model.
        draft: of the drafter's.
        other_draft: where sources differ, what others have, of another revision.
        smaller: what a tiny target has in the place of the published fields.
        architecture: SGLang's class, where it is another than the family's.
    """

    drafter: str
    family: str
    target: dict[str, Any]
    draft: dict[str, Any]
    smaller: dict[str, Any]
    other_draft: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None

    @property
    def kind(self) -> str:
        """SGLang's class of the target."""
        return self.architecture or FAMILIES[self.family].architecture

    @property
    def tiny(self) -> dict[str, Any]:
        """Fields of a small target with this structure."""
        return {**self.target, **self.smaller}

    @property
    def heads_per_kv_head(self) -> int:
        """Of the drafter; 1 where its heads are not known."""
        heads = self.draft.get("num_attention_heads")
        return heads // self.draft["num_key_value_heads"] if heads else 1

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Target layers that the drafter reads."""
        return tuple(self.draft["dflash_config"]["target_layer_ids"])


_ROPE: dict[str, Any] = {"rope_theta": 1e7, "rope_type": "default"}
_HEADS, _FEW_KEYS, _MANY = (32, 8, 128), (32, 4, 128), (64, 8, 64)
_OF_36, _OF_64 = (1, 9, 17, 25, 33), (1, 16, 31, 46, 61)
_OF_32, _OF_40 = (1, 5, 9, 13, 17, 21, 25, 29), (1, 6, 11, 16, 22, 27, 32, 37)


def _qwen(
    drafter: str,
    target: dict[str, Any],
    draft: dict[str, Any],
    layers: int,
    other: dict[str, Any] | None = None,
) -> Published:
    """Of Qwen3.5 and 3.6, whose classes take images."""
    family, kind = "Qwen3.5 / 3.6", "Qwen3_5ForConditionalGeneration"
    if "num_experts" in target:
        family, kind = "Qwen3.5 / 3.6 MoE", "Qwen3_5MoeForConditionalGeneration"
    return Published(drafter, family, target, draft, tiny_hybrid(target, layers), other or {}, kind)


PAIRS: dict[str, Published] = {
    "Qwen3-4B": Published(
        "Qwen3-4B-DFlash-b16",
        "Qwen3",
        QWEN3_4B,
        draft(QWEN3_4B, 5, _OF_36, _HEADS),
        {**ON_CPU, "hidden_size": 40},
    ),
    "Qwen3-8B": Published(
        "Qwen3-8B-DFlash-b16", "Qwen3", QWEN3_8B, draft(QWEN3_8B, 5, _OF_36, _HEADS, mask=151669), ON_CPU
    ),
    "Qwen3-Coder-30B-A3B": Published(
        "Qwen3-Coder-30B-A3B-DFlash",
        "Qwen3-MoE",
        CODER,
        draft(CODER, 8, (1, 12, 23, 34, 45), _FEW_KEYS, mask=151669),
        {**ON_CPU, "num_attention_heads": 8, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "Llama-3.1-8B": Published(
        "LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        "Llama",
        LLAMA,
        draft(LLAMA, 5, (1, 8, 15, 22, 29), _HEADS, block_size=10, intermediate_size=12288),
        {**ON_CPU, "max_position_embeddings": LLAMA["max_position_embeddings"]},
    ),
    "gpt-oss-20b": Published(
        "gpt-oss-20b-DFlash",
        "gpt-oss",
        OSS_20B,
        draft(
            OSS_20B,
            8,
            (1, 6, 11, 16, 21),
            _MANY,
            block_size=8,
            intermediate_size=7680,
            mask=200000,
            rope_parameters=OSS_20B["rope_parameters"],
            attention_bias=True,
        ),
        tiny_gpt_oss(8),
    ),
    "gpt-oss-120b": Published(
        "gpt-oss-120b-DFlash",
        "gpt-oss",
        OSS_120B,
        draft(OSS_120B, 8, _OF_36, _MANY, block_size=10, intermediate_size=7680, mask=200000),
        tiny_gpt_oss(16),
    ),
    "Qwen3-Coder-Next": Published(
        "Qwen3-Coder-Next-DFlash",
        "Qwen3-Next",
        NEXT,
        draft(NEXT, 8, (3, 11, 23, 35, 43), _FEW_KEYS, intermediate_size=6144),
        tiny_hybrid(NEXT, 6),
    ),
    "Qwen3.5-4B": _qwen("Qwen3.5-4B-DFlash", Q35_4B, draft(Q35_4B, 6, _OF_32, _HEADS, window=4096), 5),
    "Qwen3.5-9B": _qwen(
        "Qwen3.5-9B-DFlash",
        Q35_9B,
        draft(Q35_9B, 6, _OF_32, _HEADS, window=4096),
        9,
        {"target_layer_ids": [1, 8, 15, 22, 29], "mask_token_id": 248070},
    ),
    "Qwen3.5-27B": _qwen(
        "Qwen3.5-27B-DFlash",
        Q35_27B,
        draft(Q35_27B, 6, (1, 10, 18, 27, 35, 44, 52, 61), _HEADS, window=4096),
        9,
        {"num_hidden_layers": 5, "target_layer_ids": list(_OF_64), "mask_token_id": 248070, "sliding layers": 0},
    ),
    "Qwen3.5-35B-A3B": _qwen(
        "Qwen3.5-35B-A3B-DFlash",
        Q35_35B,
        draft(Q35_35B, 6, _OF_40, _HEADS, window=4096, intermediate_size=6144),
        5,
    ),
    "Qwen3.5-122B-A10B": _qwen(
        "Qwen3.5-122B-A10B-DFlash",
        Q35_122B,
        draft(
            Q35_122B,
            6,
            (1, 7, 14, 20, 26, 32, 39, 45),
            _HEADS,
            window=4096,
            intermediate_size=9216,
            mask=248077,
            rope_parameters=_ROPE,
        ),
        9,
    ),
    "Qwen3.6-27B": _qwen(
        "Qwen3.6-27B-DFlash",
        Q35_27B,
        draft(Q35_27B, 5, _OF_64, _HEADS, window=2048, mask=248070, rope_parameters=_ROPE),
        6,
    ),
    "Qwen3.6-35B-A3B": _qwen(
        "Qwen3.6-35B-A3B-DFlash",
        Q35_35B,
        draft(Q35_35B, 6, _OF_40, _HEADS, window=4096, intermediate_size=6144),
        9,
        {
            "num_hidden_layers": 8,
            "target_layer_ids": [1, 10, 19, 28, 37],
            "num_key_value_heads": 4,
            "mask_token_id": 248070,
        },
    ),
    "Kimi-K2.5": Published(
        "Kimi-K2.5-DFlash",
        "Kimi-K2.5",
        KIMI,
        draft(KIMI, 6, (1, 12, 24, 35, 47, 58), (64, 8, 128), block_size=8, mask=163838, rope_parameters=KIMI_ROPE),
        TINY_KIMI,
    ),
}
BACKENDS = {
    "gpt-oss": "fa3",
    "Qwen3-Next": "fa3",
    "Qwen3.5 / 3.6": "fa3",
    "Qwen3.5 / 3.6 MoE": "fa3",
    "Kimi-K2.5": "triton",
}
"""By family, on what the device lane runs it; the CPU platform runs the others."""
SERVED = tuple(name for name, pair in PAIRS.items() if pair.family not in BACKENDS)
"""Those that run on the CPU platform."""
ENDS = ("", "-7", "-stock")
"""Of a pair's scenes in the lane: a tree of sixteen nodes besides the root, one of seven, and SGLang's chain."""
_LANE = "tests/device_lane/test_scenes.py::test_scene"
TESTS: dict[str, tuple[str, ...]] = {
    name: (f"tests/e2e/test_published_pairs.py::test_chain_and_tree_are_plain_decoding[{name}]",)
    if name in SERVED
    else tuple(f"{_LANE}[{name}{end}]" for end in ENDS)
    for name in PAIRS
}
"""What runs of each pair."""
