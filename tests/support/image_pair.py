"""A tiny random target that sees: a mixture of experts with the vision part of Qwen3-VL, and pictures to send to it.

Its weights are large, so that an answer hangs on each picture and on where the tokens behind one stand. A picture of
w x h places takes the positions of its longer side alone, so behind it a token's position is less than its index. The
drafter is trained on text, which the target answers as if it had no vision part; behind a picture it hits less often.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeVisionConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane.pairs import (
    BOS_TOKEN,
    EOS_TOKEN,
    NUM_LAYERS,
    TinyPair,
    make_target,
    one_thread,
    train_drafter,
)
from tests.device_lane.sight import sight_of
from tests.device_lane.sliding_drafter import state_kinds

VOCABULARY = 64
MARKS = {"vision_end": 60, "vision_start": 61, "video_pad": 62, "image_pad": 63}
"""The tokens around a picture and in its place, none of which the target ever answers with."""
PICTURE = (MARKS["vision_start"], MARKS["image_pad"], MARKS["vision_end"])
"""A picture's place in a prompt."""
PIXELS_OF_PLACE = 8
"""Of either side: two patches of four pixels are merged into one place."""
_PROCESSED = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_VISION: dict[str, Any] = {
    "depth": NUM_LAYERS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": _PROCESSED["patch_size"],
    "temporal_patch_size": _PROCESSED["temporal_patch_size"],
    "spatial_merge_size": _PROCESSED["merge_size"],
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [*range(NUM_LAYERS)],
}
_ROTATION = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
"""Of a head's eight pairs, those that turn by time, height and width."""
_GAIN = 1.5
"""Of the vision part's matrices, so that what it says of a picture counts beside words."""


def make_image_pair(folder: Path, seed: int = 0) -> TinyPair:
    """Make the pair and write it to `folder`; in memory its text part is by itself, too."""
    with one_thread():
        target = make_target("qwen3_moe", seed, VOCABULARY)
        with torch.no_grad():
            target.lm_head.weight[[*MARKS.values()]] = 0.0
        drafter = train_drafter(target, 4, seed)
    target.save_pretrained(folder / "target")
    _add_vision(folder / "target", seed)
    _save_processor(folder / "target")
    export_drafter(drafter, folder / "draft", torch.float32)
    state_kinds(folder / "draft", drafter)
    sight = sight_of(str(folder / "target"), target, MARKS["image_pad"])
    return TinyPair(target, drafter.eval(), str(folder / "target"), str(folder / "draft"), sight=sight)


def picture(width: int, height: int, seed: int) -> str:
    """Random pixels of that many places, as a request takes them."""
    size = (height * PIXELS_OF_PLACE, width * PIXELS_OF_PLACE, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _add_vision(folder: Path, seed: int) -> None:
    """Make a text checkpoint one of the class that sees."""
    weights = load_file(folder / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): one for name, one in weights.items()}
    named |= {f"model.visual.{name}": one for name, one in _vision(seed).items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text["rope_parameters"] |= _ROTATION
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {**text, "architectures": None, "model_type": "qwen3_vl_moe_text"},
        "vision_config": {"model_type": "qwen3_vl_moe_vision", **_VISION},
        "image_token_id": MARKS["image_pad"],
        "video_token_id": MARKS["video_pad"],
        "vision_start_token_id": MARKS["vision_start"],
        "vision_end_token_id": MARKS["vision_end"],
        "tie_word_embeddings": False,
        "dtype": text["dtype"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@torch.no_grad()
def _vision(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of the vision part."""
    generator = torch.Generator().manual_seed(seed)
    weights = Qwen3VLMoeVisionModel(Qwen3VLMoeVisionConfig(**_VISION)).state_dict()
    for name, one in weights.items():
        random = torch.randn(one.shape, generator=generator)
        if one.dim() == 1:
            one.copy_(0.1 * random if name.endswith("bias") else torch.ones(one.shape))
        else:
            one.copy_(_GAIN * random / (1.0 if "pos_embed" in name else one[0].numel() ** 0.5))
    return weights


def _save_processor(folder: Path) -> None:
    """Words w0, w1, ... and the marks; SGLang writes a prompt as text before it puts the places of pictures in."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    marks = {f"<|{name}|>": index for name, index in MARKS.items()}
    vocabulary = {name: index for name, index in words.items() if index not in marks.values()} | marks
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=f"w{EOS_TOKEN}",
        bos_token=f"w{BOS_TOKEN}",
        additional_special_tokens=[*marks],
    )
    pixels = {"shortest_edge": PIXELS_OF_PLACE**2, "longest_edge": 64 * PIXELS_OF_PLACE**2}
    images = Qwen2VLImageProcessor(**_PROCESSED, size=pixels)
    Qwen3VLProcessor(images, wrapped, Qwen3VLVideoProcessor(**_PROCESSED)).save_pretrained(folder)
