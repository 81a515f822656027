"""Intern-S2-Mobius around Qwen3.5's layers: a few banks of experts, of which a layer has the one of its turn.

Router and experts are a bank's, the shared expert is a layer's own (models/interns2_mobius.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ARCHITECTURE = "InternS2MobiusForConditionalGeneration"
NUM_BANKS = 2
_OF_A_BANK = re.compile(r"layers\.(\d+)\.mlp\.(experts|gate)\.")


def share_banks(target: Any) -> None:
    """Give each layer of a Qwen3.5 mixture of experts the bank of its turn."""
    for index, layer in enumerate(target.model.layers):
        bank = target.model.layers[index % NUM_BANKS].mlp
        layer.mlp.experts, layer.mlp.gate = bank.experts, bank.gate


def save_banks(folder: Path, target: Any) -> None:
    """Name a saved target's weights by bank and add what sees, all of which SGLang asks for.

    Args:
        folder: of the target, which is saved as the class already.
        target: what was saved, with its banks shared.
    """
    from transformers import Qwen3_5MoeVisionConfig, Qwen3_5MoeVisionModel

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"model_type": "interns2_mobius_text", "num_blocks": NUM_BANKS}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    saved = load_file(folder / "model.safetensors")
    named = {name: one for name, one in saved.items() if _OF_A_BANK.search(name) is None}
    for bank, layer in enumerate(target.model.layers[:NUM_BANKS]):
        for part in ("experts", "gate"):
            for name, one in getattr(layer.mlp, part).state_dict().items():
                named[f"model.language_model.meta_mlp.{bank}.{part}.{name}"] = one.clone()
    torch.manual_seed(0)
    sees = Qwen3_5MoeVisionModel(Qwen3_5MoeVisionConfig(**config["vision_config"]))
    named |= {f"model.visual.{name}": one for name, one in sees.state_dict().items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
