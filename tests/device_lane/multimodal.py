"""A tiny text target under the name of published ones: the language part of a model that sees images, too.

Its weights and answers are the text model's. What changes is how SGLang takes it: another class, a nested
configuration, and rotary positions of three rows, which are equal as long as nobody sends an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

ARCHITECTURE = "Qwen3_5ForConditionalGeneration"
_VISION = {
    "model_type": "qwen3_5",
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
}


def save_as_multimodal(folder: Path) -> None:
    """Rename a saved Qwen3.5 and its weights, and give it a processor; its vision part has no weights.

    Args:
        folder: of the target, with its tokenizer.
    """
    text: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text.pop("architectures")
    # Of the rotated pairs of a head, those that time, height and width turn.
    pairs = int(text["head_dim"] * text["rope_parameters"]["partial_rotary_factor"]) // 2
    text["rope_parameters"] |= {"mrope_section": [pairs - pairs // 2, pairs // 2, 0], "mrope_interleaved": True}
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3_5",
        "text_config": text,
        "vision_config": _VISION,
        "tie_word_embeddings": False,
        "dtype": text["dtype"],
        **{f"{name}_id": text["vocab_size"] - 1 for name in ("image_token", "video_token", "vision_start_token")},
        "vision_end_token_id": text["vocab_size"] - 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): one for name, one in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor()).save_pretrained(folder)
