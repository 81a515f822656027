"""Write a drafter as the Hugging Face folder that SGLang's `DFlashDraftModel` loads, and check it.

Weight names are those `DFlashDraftModel.load_weights` (SGLang 0.5.23, `srt/models/dflash.py`) expects:
`layers.N.self_attn.{q,k,v,o}_proj`, `{q,k}_norm`, `layers.N.mlp.{gate,up,down}_proj`, the two layer norms,
`fc`, `hidden_norm`, `norm`, each with `.weight`; a drafter that scores pairs has `candidate_selector.*`, too. It
ignores unknown and missing names without a message, so the check here is the only one.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddtree_sglang.training.model.drafter_config import ARCHITECTURE, SELECTOR_ARCHITECTURE, DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter


def export_drafter(model: DFlashDrafter, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write `config.json` and `model.safetensors` to `folder` and load them back.

    Raises:
        ValueError: a weight is not finite, or what was written does not load into the same shapes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to(dtype).contiguous() for name, value in model.state_dict().items()}
    broken = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise ValueError(f"drafter weights must be finite, {broken} are not: resume an earlier checkpoint.")
    config = model.config.to_hf_config() | {"dtype": str(dtype).removeprefix("torch.")}
    partial = folder / "model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner alone; others may serve it
    partial.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    load_drafter(folder)
    return folder


def with_raw_features(model: DFlashDrafter, feature_scale: torch.Tensor) -> DFlashDrafter:
    """A copy that takes features as an engine hands them over: their scale [F*H] moves into the projection."""
    folded = copy.deepcopy(model)
    with torch.no_grad():
        folded.fc.weight.mul_(feature_scale.to(folded.fc.weight.device))
    return folded.eval()


def load_drafter(folder: Path) -> DFlashDrafter:
    """Load an exported drafter in float32; every weight must be there, none more.

    Raises:
        FileNotFoundError: `config.json` or `model.safetensors` is missing.
        ValueError: neither a DFlash nor a DFlash2 drafter, a damaged file, or names or shapes differ from the config's.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"the drafter in {folder} is damaged ({error}): export it again.") from error
    if config.get("architectures") not in ([ARCHITECTURE], [SELECTOR_ARCHITECTURE]):
        raise ValueError(
            f"a drafter's config.json must say architectures ['{ARCHITECTURE}'] or ['{SELECTOR_ARCHITECTURE}'], found "
            f"{config.get('architectures')} in {folder}: pass a DFlash or DFlash2 drafter folder."
        )
    try:
        model = DFlashDrafter(DrafterConfig.from_hf_config(config))
    except KeyError as error:
        raise ValueError(f"config.json in {folder} must have the field {error}: export the drafter again.") from error
    try:
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"weights in {folder} do not fit its config.json: {error}") from error
    return model.eval()
