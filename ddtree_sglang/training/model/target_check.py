"""Check, before any long stage, that the recipe can train a drafter for a target; reads its folder but no weights.

The recipe needs a causal language model of Llama's shape (Llama, Mistral, Qwen2, Qwen3, SmolLM): features and scores
use `model`, `model.norm` and `lm_head`, and a start from the target's layers copies them one to one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.model.drafter_config import DrafterChoices, DrafterConfig, drafter_config_for

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
WEIGHT_FILES = ("*.safetensors", "*.bin")
NUM_FEATURE_LAYERS, NUM_START_LAYERS = 5, 3


def default_target_layers(num_layers: int) -> tuple[int, ...]:
    """Up to five layers from the second to the last but one, evenly spread: 1, 8, 15, 22, 28 of 30."""
    first, last = min(1, num_layers - 2), num_layers - 2
    steps = NUM_FEATURE_LAYERS - 1
    return tuple(dict.fromkeys(first - (first - last) * i // steps for i in range(steps + 1)))


def default_start_layers(num_layers: int) -> tuple[int, ...]:
    """The last three layers: 27, 28, 29 of 30."""
    return tuple(range(max(0, num_layers - NUM_START_LAYERS), num_layers))


def target_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json and over the names and sizes of the weight files.

    What a library notes about itself in config.json does not count. Weights are not read, because they may be
    hundreds of GB: two targets of equal config.json and file sizes have one fingerprint.

    Raises:
        ValueError: the folder is no Hugging Face model.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--target must be a Hugging Face folder with a config.json, {folder}: {error}.") from error
    for name in ("transformers_version", "_name_or_path"):
        config.pop(name, None)
    files = sorted((path.name, path.stat().st_size) for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    return hashlib.sha256(json.dumps([config, files], sort_keys=True).encode()).hexdigest()


def check_target(
    folder: Path,
    tokenizer: Any,
    choices: DrafterChoices,
) -> tuple[DrafterConfig, tuple[int, ...]]:
    """The drafter's shape and the layers that it starts from; a choice that is None is the target's default.

    Raises:
        ValueError: the architecture, the mask token, or a layer number does not fit; the message says what to do.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    count = getattr(config, "num_hidden_layers", None)
    if count is None or not hasattr(config, "rope_parameters"):
        raise ValueError(_shape_message(folder, config, "its config has no num_hidden_layers or no rope_parameters"))
    start = default_start_layers(count) if choices.start_layers is None else choices.start_layers
    features = default_target_layers(count) if choices.target_layers is None else choices.target_layers
    outside = [index for index in start if not 0 <= index < count]
    if outside and not choices.random_start:
        raise ValueError(f"--start-layers must be layers 0 to {count - 1} of this target, got {outside}.")
    _check_architecture(folder, config, () if choices.random_start else start)
    mask_id = tokenizer.get_vocab().get(choices.mask_token)
    if mask_id is None:
        raise ValueError(
            f"the mask token must be in the target's vocabulary, {choices.mask_token!r} is not: pass --mask-token with "
            "a token that text never holds."
        )
    if "rope_theta" not in config.rope_parameters:
        raise ValueError(_shape_message(folder, config, "its rotary embedding has no single rope_theta"))
    drafter = drafter_config_for(
        config,
        mask_token_id=mask_id,
        mask_token=choices.mask_token,
        target_layer_ids=features,
        num_layers=len(start),
        block_size=choices.block_size,
    )
    return drafter, start


def _check_architecture(folder: Path, config: Any, layers: tuple[int, ...]) -> None:
    """Look at the modules, built without memory; `layers` are those to copy."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(config)
    missing = [name for name in ("model.layers", "model.norm", "lm_head") if not _has(target, name)]
    if missing:
        raise ValueError(_shape_message(folder, config, f"it has no {', '.join(missing)}"))
    for index in layers:
        layer_problems = copy_problems(target.model.layers[index])
        if layer_problems:
            finding = f"layer {index} {'; '.join(layer_problems)}"
            raise ValueError(_shape_message(folder, config, finding) + " --random-start needs no layer to copy.")


def copy_problems(layer: Any) -> list[str]:
    """Why a drafter's layer cannot start as a copy of this target layer; empty when it can.

    A drafter has no biases: a copy that left them out would be another layer than the target's.
    """
    names = [*NORMS, *(f"self_attn.{name}" for name in ATTENTION), *(f"mlp.{name}" for name in FEED_FORWARD)]
    missing = [name for name in names if not _has(layer, f"{name}.weight")]
    if missing:
        return [f"has no {', '.join(missing)}"]
    biased = [name for name in names if getattr(_get(layer, name), "bias", None) is not None]
    known = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    known |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    unknown = [name for name, _ in layer.named_parameters() if name not in known]
    problems = [f"has biases in {', '.join(biased)}, which a drafter does not have"] if biased else []
    if unknown:
        problems.append(f"has {', '.join(unknown)}, which a drafter does not have")
    return problems


def _has(module: Any, path: str) -> bool:
    return _get(module, path) is not None


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _shape_message(folder: Path, config: Any, finding: str) -> str:
    architecture = ", ".join(getattr(config, "architectures", None) or [type(config).__name__])
    return f"the target must be of Llama's shape (Llama, Mistral, Qwen, SmolLM); {architecture} in {folder}: {finding}."
