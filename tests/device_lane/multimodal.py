"""A tiny text target under the name of published ones: the language part of a model that sees images, too.

Its weights and answers are the text model's. What changes is how SGLang takes it: another class, a nested
configuration, other names of weights, and for some rotary positions of three rows, which are equal as long as nobody
sends an image. The vision part has no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    NemotronH_Omni_Reasoning_V3Processor,
    NemotronH_Omni_Reasoning_V3VideoProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    Wav2Vec2FeatureExtractor,
)


@dataclass(frozen=True)
class Wrapping:
    """How a text model becomes a published class.

    Attributes:
        model_type: of its configuration.
        vision: its `vision_config`.
        renamed: the beginning of the text's weights, and what it becomes.
        rotates_images: whether time, height and width turn parts of a head, which the text's rotation says.
        is_for_text: its configuration says that it is for text alone; others get a processor.
        text_name: where its configuration has the text's.
        own: what its configuration has besides.
    """

    model_type: str
    vision: Mapping[str, Any]
    renamed: tuple[tuple[str, str], ...]
    rotates_images: bool = True
    is_for_text: bool = False
    text_name: str = "text_config"
    own: Mapping[str, Any] = field(default_factory=dict)


_QWEN: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
}
_MOON: dict[str, Any] = {
    "patch_size": 2,
    "init_pos_emb_height": 2,
    "init_pos_emb_width": 2,
    "init_pos_emb_time": 1,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "vt_hidden_size": 32,
    "intermediate_size": 32,
    "text_hidden_size": 32,
}
_MOON_K3: dict[str, Any] = {
    "patch_size": 2,
    "init_pos_emb_height": 2,
    "init_pos_emb_width": 2,
    "init_pos_emb_time": 1,
    "vt_num_attention_heads": 2,
    "vt_num_hidden_layers": 1,
    "vt_hidden_size": 32,
    "vt_intermediate_size": 32,
    "qkv_hidden_size": 32,
    "text_hidden_size": 32,
}
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_patches": 16,
    "patch_size": 4,
}
_RADIO: dict[str, Any] = {
    "args": {"model": "vit_small_patch16_224"},
    "image_size": 32,
    "patch_size": 16,
    "video_temporal_patch_size": 2,
}
_OF_KIMI = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
_RENAMED = (("model.", "model.language_model."),)
MULTIMODAL = {
    "Qwen3_5ForConditionalGeneration": Wrapping("qwen3_5", _QWEN, _RENAMED),
    "Qwen3_5MoeForConditionalGeneration": Wrapping("qwen3_5_moe", _QWEN, _RENAMED),
    "InternS2PreviewForConditionalGeneration": Wrapping("intern_s2_preview", _QWEN, _RENAMED),
    "InternS2MobiusForConditionalGeneration": Wrapping("interns2_mobius", _QWEN, _RENAMED),
    "Lfm2VlForConditionalGeneration": Wrapping("lfm2_vl", _SIGLIP, _RENAMED, rotates_images=False),
    "NemotronH_Omni_Reasoning_V3": Wrapping(
        "nemotron_h_omni",
        _RADIO,
        (("backbone.", "language_model.backbone."), ("lm_head.", "language_model.lm_head.")),
        rotates_images=False,
        text_name="llm_config",
        own={"vit_hidden_size": 384, "projector_hidden_size": 32},
    ),
    "KimiK25ForConditionalGeneration": Wrapping(
        "kimi_k25",
        _MOON,
        _OF_KIMI,
        rotates_images=False,
        is_for_text=True,
    ),
    "KimiK3ForConditionalGeneration": Wrapping(
        "kimi_k3",
        _MOON_K3,
        _OF_KIMI,
        rotates_images=False,
        is_for_text=True,
    ),
}
"""By class."""


def save_as_multimodal(folder: Path, architecture: str) -> None:
    """Rename a saved text target and its weights, and give it a processor if it needs one.

    Args:
        folder: of the target, with its tokenizer.
        architecture: the class, one of `MULTIMODAL`.
    """
    wrapping = MULTIMODAL[architecture]
    text: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if wrapping.rotates_images:
        text.pop("architectures")  # which Kimi's text keeps
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token", "media_placeholder_token")
    config = {
        "architectures": [architecture],
        "model_type": wrapping.model_type,
        wrapping.text_name: text,
        "vision_config": {"model_type": wrapping.model_type, **wrapping.vision},
        "tie_word_embeddings": text["tie_word_embeddings"],
        **({"language_model_only": True} if wrapping.is_for_text else {}),
        **wrapping.own,
        "dtype": text["dtype"],
        **{f"{name}_id": text["vocab_size"] - 1 for name in names},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    named = {_renamed(name, wrapping): one for name, one in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    if not wrapping.is_for_text:
        _processor(wrapping, AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)


def _processor(wrapping: Wrapping, tokenizer: Any) -> Any:
    if wrapping.vision is _SIGLIP:
        return Lfm2VlProcessor(Lfm2VlImageProcessor(), tokenizer)
    if wrapping.vision is _RADIO:
        tokenizer.unk_token = "w0"  # which SGLang's own needs
        parts = NemotronH_Omni_Reasoning_V3ImageProcessor(), NemotronH_Omni_Reasoning_V3VideoProcessor()
        return NemotronH_Omni_Reasoning_V3Processor(*parts, tokenizer, Wav2Vec2FeatureExtractor())
    return Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor())


def _renamed(name: str, wrapping: Wrapping) -> str:
    for before, after in wrapping.renamed:
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name
