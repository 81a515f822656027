"""Other classes of SGLang's models that hand their layers' states to a block drafter: what DDTREE does with each.

A class is admitted where each of its layers reads a token, its position and the keys that the mask shows, by a kind of
attention that a family of `families.FAMILIES` was shown with. Nobody has run these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Other:
    """A class, and what becomes of a server with it.

    Attributes:
        why: words of the refusal; of a class that is admitted, which attention it has.
        is_refused: at start, by its configuration.
        config: SGLang's class of its configuration; "" where admission reads nothing of it but the name.
        fields: of that configuration.
        is_latent: SGLang takes it for one with latent attention.
    """

    why: str
    is_refused: bool = False
    config: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    is_latent: bool = False


_LLAMA = Other("full attention, Llama's class or one of the same layers")
_MROPE = Other("full attention, positions in three rows as Qwen3.5's, which images would tell apart")
_WINDOWS = Other("windows and full attention, as gpt-oss's and Gemma 4's")
_BY_POSITION = "queries scaled by their position, which a node has"
_STATES = "whose states have not been shown to follow a tree"
_INDEXER = Other("an indexer that picks some", is_refused=True, fields={"index_topk": 8}, is_latent=True)
_KDA = Other("most of whose layers are KDA", is_refused=True)
_MIMO = Other("whose keys and values differ in width", is_refused=True)


def _recurrent(config: str) -> Other:
    return Other(_STATES, is_refused=True, config=config)


OTHERS: dict[str, Other] = {
    "BeamForCausalLM": Other(f"windows and full attention, there {_BY_POSITION}"),
    "Cosmos3ForConditionalGeneration": _MROPE,
    "DeepseekV2ForCausalLM": Other("latent attention, DeepSeek-V3's class", is_latent=True),
    "DeepseekV32ForCausalLM": _INDEXER,
    "Gemma4ForConditionalGeneration": _WINDOWS,
    "Gemma4UnifiedForConditionalGeneration": _WINDOWS,
    "Glm4MoeLiteForCausalLM": Other("latent attention, DeepSeek's layers", is_latent=True),
    "Glm5NextForConditionalGeneration": Other("whose layers are KDA", is_refused=True),
    "GlmMoeDsaForCausalLM": _INDEXER,
    "IQuestCoderForCausalLM": _LLAMA,
    "InklingForConditionalGeneration": Other("whose layers convolve keys, values and outputs", is_refused=True),
    "InternLM3ForCausalLM": _LLAMA,
    "InternS1ProForConditionalGeneration": Other("full attention, rotations of each head by position"),
    "InternS2MobiusForConditionalGeneration": _recurrent("InternS2MobiusConfig"),
    "InternS2PreviewForConditionalGeneration": _recurrent("InternS2PreviewConfig"),
    "KimiK3ForConditionalGeneration": _KDA,
    "KimiK3LinearForCausalLM": _KDA,
    "LagunaForCausalLM": _WINDOWS,
    "Lfm2VlForConditionalGeneration": _recurrent("Lfm2VlConfig"),
    "MellumForCausalLM": _WINDOWS,
    "MiMoV2FlashForCausalLM": _MIMO,
    "MiMoV2ForCausalLM": _MIMO,
    "MiniMaxM3SparseForConditionalGeneration": Other("whose sparse layers pick blocks of keys", is_refused=True),
    "Ministral3ForCausalLM": Other(f"full attention, {_BY_POSITION}"),
    "MistralForCausalLM": _LLAMA,
    "MistralLarge3ForCausalLM": Other(f"latent attention, DeepSeek-V3's class, {_BY_POSITION}", is_latent=True),
    "MuseGlimmerForCausalLM": _WINDOWS,
    "MuseGlimmerForConditionalGeneration": _WINDOWS,
    "MuseSparkForConditionalGeneration": _WINDOWS,
    "NanbeigeForCausalLM": Other("full attention in layers that run several times, each time with keys of their own"),
    "NemotronHPuzzleForCausalLM": _recurrent("NemotronHConfig"),
    "NemotronH_Nano_Omni_Reasoning_V3": _recurrent("NemotronH_Nano_VL_V2_Config"),
    "NemotronH_Nano_VL_V2": _recurrent("NemotronH_Nano_VL_V2_Config"),
    "NemotronH_Omni_Reasoning_V3": _recurrent("NemotronH_Nano_VL_V2_Config"),
    "Phi3ForCausalLM": _LLAMA,
    "Qwen3VLForConditionalGeneration": _MROPE,
    "Qwen3VLMoeForConditionalGeneration": _MROPE,
    "Qwen4ExpForConditionalGeneration": Other("which reads the tokens before one by their place", is_refused=True),
    "TeleFLMForCausalLM": _LLAMA,
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
