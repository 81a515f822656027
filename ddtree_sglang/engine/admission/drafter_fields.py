"""Fields of a drafter's `config.json`: where they stand, and whether they are what SGLang reads them as.

Knows nothing of SGLang: fields, places and defaults are those of SGLang 0.5.23 (speculative/dflash_utils.py,
`parse_dflash_draft_config`; models/dflash.py). What is wrong by itself is told by doctor and by a server alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_BLOCK_SIZE = 16
"""What SGLang assumes for a checkpoint that does not say (models/dflash.py)."""

_LEAST = {
    "block_size": 0,
    "mask_token_id": 0,
    "num_target_layers": 1,
    "conv_kernel_size": 0,
    "conv_group_size": 0,
    "vocab_size": 1,
}
"""Whole numbers, and the least that each may be; a block that is too short has words of its own elsewhere."""


def block_field(drafter: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field of `dflash_config` or, where that has none, of the top level; one that is null is none."""
    nested = drafter.get("dflash_config") or {}
    stated = (one[name] for one in (nested, drafter) if one.get(name) is not None)
    return next(stated, default)


def block_size_of(drafter: Mapping[str, Any]) -> int:
    """As it is stated; what it counts hangs on the family (`drafter_checks.shape_of`)."""
    return int(block_field(drafter, "block_size", DEFAULT_BLOCK_SIZE))


def wrong_field(drafter: Mapping[str, Any]) -> str | None:
    """What is not as SGLang reads it, or does not fit another field of the same file; None if all does."""
    found = _wrong_kind(drafter) or _wrong_number(drafter) or _wrong_layers(drafter) or _wrong_together(drafter)
    return None if found is None else f"{found}; correct it in the drafter's config.json."


def _wrong_kind(drafter: Mapping[str, Any]) -> str | None:
    names = drafter.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        return f"architectures must be a list of names, got {names!r}"
    for field in ("dflash_config", "quantization_config"):
        if not isinstance(drafter.get(field) or {}, Mapping):
            return f"{field} must be an object, got {drafter[field]!r}"
    text = drafter.get("text_config")
    if isinstance(text, Mapping) and "hidden_size" in text and drafter.get("hidden_size") is None:
        return "hidden_size and what goes with it must stand at the top level, found in text_config alone"
    return None


def _wrong_number(drafter: Mapping[str, Any]) -> str | None:
    for field, least in _LEAST.items():
        value = block_field(drafter, field)
        if value is not None and not (is_whole(value) and value >= least):
            return f"{field} must be a whole number of at least {least}, got {value!r}"
    scale = block_field(drafter, "output_multiplier", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 0:
        return f"output_multiplier must be a number above 0, got {scale!r}"
    return None


def _wrong_layers(drafter: Mapping[str, Any]) -> str | None:
    layers, total = block_field(drafter, "target_layer_ids"), block_field(drafter, "num_target_layers")
    if layers is None:
        return None
    if not isinstance(layers, list | tuple) or not all(map(is_whole, layers)):
        return f"target_layer_ids must be a list of whole numbers, got {layers!r}"
    outside = [layer for layer in layers if layer < 0 or (total is not None and layer >= total)]
    if outside:
        most = "" if total is None else f" and below num_target_layers, {total}"
        return f"target_layer_ids must be at least 0{most}, got {list(layers)}, of which {outside} do not exist"
    return None


def _wrong_together(drafter: Mapping[str, Any]) -> str | None:
    mask, vocabulary = block_field(drafter, "mask_token_id"), drafter.get("vocab_size")
    if mask is not None and vocabulary is not None and mask >= vocabulary:
        return f"mask_token_id must be below vocab_size, {vocabulary}, got {mask}"
    taps, group = (block_field(drafter, f"conv_{part}_size") or 0 for part in ("kernel", "group"))
    if bool(taps) != bool(group):
        return f"conv_kernel_size and conv_group_size must be given together, got {taps} and {group}"
    hidden = drafter.get("hidden_size")
    if group and isinstance(hidden, int) and hidden % group:
        return f"conv_group_size must divide hidden_size, {hidden}, got {group}"
    return None


def is_whole(value: Any) -> bool:
    """A whole number of JSON's, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)
