"""Does this drafter fit this target? Answered from the two `config.json`, before any weight is loaded.

Knows nothing of SGLang: it takes the configurations as plain mappings. The rules are those of SGLang's
`DFlashDraftModel` (models/dflash.py, speculative/dflash_utils.py) and, for the head, of `drafter_families`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddtree_sglang.engine.admission.drafter_families import MARKOV, require_served
from ddtree_sglang.engine.admission.drafter_fields import block_size_of, text_part
from ddtree_sglang.exceptions import DDTreeConfigError


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """The facts about a drafter that the engine needs before loading it.

    Attributes:
        stated_size: the `block_size` of its config.json.
        block_size: R, tokens of the block that it runs: the root and R - 1 masks.
        draft_depth: D, the positions that it proposes.
    """

    stated_size: int
    block_size: int
    draft_depth: int


def proposes_at_the_root(drafter: Mapping[str, Any], family: str) -> bool:
    """Whether each state of a block proposes the next token, the root's the first, and not the one at its own place.

    So do DSpark's drafters that do not say otherwise (dspark_config.py, get_dspark_sample_from_anchor).
    """
    return family == MARKOV and bool(drafter.get("sample_from_anchor", True))


def shape_of(drafter: Mapping[str, Any], family: str) -> DrafterShape:
    """Of a parsed `config.json` of this family (`drafter_families`).

    `block_size` counts tokens of a block, the root included. DSpark's counts drafted tokens, however many rows those
    take (dspark_worker_v2.py, query_token_num).
    """
    stated = block_size_of(drafter)
    depth = stated if family == MARKOV else stated - 1
    rows = depth if proposes_at_the_root(drafter, family) else depth + 1
    return DrafterShape(stated, rows, depth)


def check_checkpoint_folder(path: str, role: str, flag: str, needs_weights: bool = True) -> None:
    """Refuse a local folder that cannot be a checkpoint; a name that is no local path is left to SGLang's loader.

    `needs_weights` is False for `--load-format dummy`, which makes weights up.

    Raises:
        DDTreeConfigError: the path looks local but does not exist, or holds no config.json or no weights.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        if path.startswith((".", "/", "~")):
            raise DDTreeConfigError(f"{role} must be a folder or a model name, {path!r} does not exist; check {flag}.")
        return
    required = [("config.json", "config.json")]
    if needs_weights:
        required.append(("*.safetensors", "weights (*.safetensors)"))
    for pattern, what in required:
        if folder.is_dir() and not any(folder.glob(pattern)) and not _has_torch_weights(folder, pattern):
            raise DDTreeConfigError(f"{role} must hold {what}, the folder {path!r} has none; check {flag}.")


def check_drafter_configuration(folder: Path) -> None:
    """Refuse a local drafter by its `config.json` as it stands, by the rules of `ddtree doctor --draft`.

    Transformers, which reads it for SGLang, would tell of some of these in its own words, and fill in what is missing.
    A file that is no JSON object is left to it.

    Raises:
        DDTreeConfigError: no trees can be built of it.
    """
    file = folder / "config.json"
    try:
        drafter = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(drafter, dict):
        require_served(drafter)


def _has_torch_weights(folder: Path, pattern: str) -> bool:
    return pattern.endswith(".safetensors") and any(folder.glob("*.bin"))


def check_drafter_fits_target(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> DrafterShape:
    """Check a DFlash drafter's configuration against its target's, both as parsed `config.json`.

    Raises:
        DDTreeConfigError: a family or head that is refused, a hidden size, a vocabulary, target layers or a mask token
            that do not fit, or a block too short to draft.
    """
    dflash = drafter.get("dflash_config") or {}
    family = require_served(drafter)
    text = text_part(target)
    _check_same_hidden_size(drafter, text)
    _check_vocabulary(drafter, dflash, text)
    _check_target_layers(drafter, dflash, text)
    shape = shape_of(drafter, family.name)
    if shape.stated_size < 2:
        raise DDTreeConfigError(
            "the drafter's block_size must be at least 2 (the anchor and one drafted position), got "
            f"{shape.stated_size}; use a drafter that was trained for a longer block."
        )
    return shape


def check_same_dtype(target: str, drafter: str) -> None:
    """Refuse a pair that `--dtype auto` loads in two types: the drafter's first product takes the target's states.

    Raises:
        DDTreeConfigError: they differ.
    """
    if target != drafter:
        raise DDTreeConfigError(
            f"target and drafter must be loaded in one dtype, got {target} and {drafter} with --dtype auto; add "
            f"--dtype {target} or --dtype {drafter}, which is then both models'."
        )


def _check_same_hidden_size(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    if drafter.get("hidden_size") != target.get("hidden_size"):
        raise DDTreeConfigError(
            f"the drafter's hidden_size must equal the target's, got {drafter.get('hidden_size')} and "
            f"{target.get('hidden_size')}; a drafter only works with the target that it was trained for."
        )


def _check_vocabulary(drafter: Mapping[str, Any], dflash: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    drafter_vocab, target_vocab = drafter.get("vocab_size"), target.get("vocab_size")
    if drafter_vocab is not None and drafter_vocab != target_vocab:
        raise DDTreeConfigError(
            f"the drafter's vocabulary must be the target's, got {drafter_vocab} and {target_vocab} tokens; "
            "DDTREE drafts through the target's own embedding and LM head."
        )
    mask_token_id = dflash.get("mask_token_id", drafter.get("mask_token_id"))
    if mask_token_id is not None and target_vocab is not None and not 0 <= mask_token_id < target_vocab:
        raise DDTreeConfigError(
            f"the drafter's mask_token_id must be a token of the target's vocabulary (0 to {target_vocab - 1}), "
            f"got {mask_token_id}; correct dflash_config.mask_token_id in the drafter's config.json."
        )


def _check_target_layers(drafter: Mapping[str, Any], dflash: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    num_layers = target.get("num_hidden_layers")
    trained_for = dflash.get("num_target_layers", drafter.get("num_target_layers"))
    if num_layers is None:
        return
    if trained_for is not None and int(trained_for) != int(num_layers):
        raise DDTreeConfigError(
            f"the drafter was trained for a target of {trained_for} layers, got one of {num_layers}; "
            "use the target that its model card names."
        )
    layer_ids = dflash.get("target_layer_ids", drafter.get("target_layer_ids")) or []
    outside = [layer for layer in layer_ids if not 0 <= int(layer) < int(num_layers)]
    if outside:
        raise DDTreeConfigError(
            f"the drafter reads target layers {list(layer_ids)}, the target has layers 0 to {int(num_layers) - 1}; "
            f"{outside} do not exist. Use the target that its model card names."
        )
