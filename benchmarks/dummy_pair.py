"""A target and a drafter of real sizes without weights, for servers started with `--load-format dummy`.

    python -m benchmarks dummy_pair FOLDER [--shape qwen3-8b] [--tokenizer MODEL_FOLDER]

Writes FOLDER/target (the shape of Qwen3-8B, or of a smaller one) and FOLDER/draft (a DFlash drafter for it: five
layers, block 16), with a tokenizer of bytes unless one is named. What a round costs depends on shapes alone; what a
dummy drafter is accepted for says nothing, and is not reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.byte_tokenizer import save_byte_tokenizer

# The published config.json of Qwen/Qwen3-8B, the fields that decide shapes.
TARGET: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 151935,
    "torch_dtype": "bfloat16",
}
# Of the published config.json of Qwen/Qwen3-0.6B, what differs.
SMALLER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
SHAPES = {"qwen3-8b": TARGET, "qwen3-0.6b": TARGET | SMALLER}
DRAFT_LAYERS = 5
BLOCK_SIZE = 16


def drafter_config(target: dict[str, Any] = TARGET) -> dict[str, Any]:
    """What DFlash publishes for a target of this shape: five of its layers, features of five of its depths."""
    layers = target["num_hidden_layers"]
    return target | {
        "architectures": ["DFlashDraftModel"],
        "num_hidden_layers": DRAFT_LAYERS,
        "num_target_layers": layers,
        "block_size": BLOCK_SIZE,
        "layer_types": ["full_attention"] * DRAFT_LAYERS,
        "dflash_config": {
            "block_size": BLOCK_SIZE,
            "mask_token_id": target["vocab_size"] - 2,
            "num_target_layers": layers,
            "target_layer_ids": [1 + (layers - 4) * index // (DRAFT_LAYERS - 1) for index in range(DRAFT_LAYERS)],
        },
    }


def write_pair(folder: Path, tokenizer: Path | None, shape: str = "qwen3-8b") -> tuple[Path, Path]:
    """Write both folders; tokenizer files are copied or made, their ids are within the larger vocabulary."""
    target, draft = folder / "target", folder / "draft"
    for path, config in ((target, SHAPES[shape]), (draft, drafter_config(SHAPES[shape]))):
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is None:
        save_byte_tokenizer(target)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (tokenizer / name).exists():
                shutil.copy(tokenizer / name, target / name)
    return target, draft


def main(argv: Sequence[str]) -> int:
    """Write the pair and print its two folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-8b")
    parser.add_argument("--tokenizer", type=Path, help="a model folder to copy the tokenizer from (default: bytes)")
    args = parser.parse_args(argv)
    print(*write_pair(args.folder, args.tokenizer, args.shape), sep="\n")
    return 0
