"""Fields of a drafter's `config.json`: where they stand, and whether they are what SGLang reads them as.

Knows nothing of SGLang: fields, places and defaults are those of SGLang 0.5.23 (speculative/dflash_utils.py,
`parse_dflash_draft_config`; models/dflash.py). What is wrong by itself is told by doctor and by a server alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddtree_sglang.engine.admission.drafter_quantization import wrong_method
from ddtree_sglang.engine.admission.drafter_shape import is_number, is_whole, shape_field, wrong_shape

DEFAULT_BLOCK_SIZE = 16
"""What SGLang assumes for a checkpoint that does not say (models/dflash.py)."""

CONVOLUTION_FIELDS = ("conv_kernel_size", "conv_group_size")
"""SGLang reads them of `dflash_config` alone."""
MAX_DEPTH = 31
"""Drafted positions that trees on a GPU are built of (kernels/tree_builder_triton.py)."""

_LEAST = {
    "block_size": 0,
    "mask_token_id": 0,
    "num_target_layers": 1,
    "vocab_size": 1,
}
"""Whole numbers, and the least that each may be; a block that is too short has words of its own elsewhere."""
_LEAST_SPREAD = 4
"""Layers of a target over which SGLang spreads what a drafter reads (`build_target_layer_ids`)."""


def block_field(drafter: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field of `dflash_config` or, where that has none, of the top level; one that is null is none.

    A null in `dflash_config` hides the top level's, as SGLang reads it.
    """
    nested = drafter.get("dflash_config") or {}
    found = nested[name] if name in nested else drafter.get(name)
    return default if found is None else found


def text_part(target: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a target's parsed `config.json`, what is of its text model, found where SGLang looks for it.

    Nemotron-H's classes with images have it as `llm_config` (utils/hf_transformers/common.py, `get_hf_text_config`).
    """
    return target.get("llm_config") or target.get("text_config") or target


def block_size_of(drafter: Mapping[str, Any]) -> int:
    """As it is stated; what it counts hangs on the family (`drafter_checks.shape_of`)."""
    return int(block_field(drafter, "block_size", DEFAULT_BLOCK_SIZE))


def wrong_field(drafter: Mapping[str, Any]) -> str | None:
    """What is not as SGLang reads it, or does not fit another field of the same file; None if all does."""
    found = (
        _wrong_kind(drafter)
        or _wrong_number(drafter)
        or wrong_method(drafter)
        or wrong_shape(drafter)
        or _wrong_layers(drafter)
        or _wrong_mask(drafter)
        or _wrong_extras(drafter)
        or _wrong_together(drafter)
    )
    return None if found is None else f"{found}; correct it in the drafter's config.json."


def _wrong_kind(drafter: Mapping[str, Any]) -> str | None:
    names = drafter.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        return f"architectures must be a list of names, got {names!r}"
    for field in ("dflash_config", "quantization_config", "text_config"):
        if not isinstance(drafter.get(field) or {}, Mapping):
            return f"{field} must be an object, got {drafter[field]!r}"
    text = drafter.get("text_config")
    if isinstance(text, Mapping) and "hidden_size" in text and drafter.get("hidden_size") is None:
        return "hidden_size and what goes with it must stand at the top level, found in text_config alone"
    return None


def _wrong_number(drafter: Mapping[str, Any]) -> str | None:
    told = (_wrong_whole(field, block_field(drafter, field), least) for field, least in _LEAST.items())
    return next(filter(None, told), None)


def _wrong_whole(field: str, value: Any, least: int) -> str | None:
    """A field that may be left out, and else is a whole number."""
    if value is None or (is_whole(value) and value >= least):
        return None
    return f"{field} must be a whole number of at least {least}, got {value!r}"


def _wrong_layers(drafter: Mapping[str, Any]) -> str | None:
    layers, total = block_field(drafter, "target_layer_ids"), block_field(drafter, "num_target_layers")
    if layers is None:
        return _wrong_spread(drafter, total)
    if not isinstance(layers, list | tuple) or not all(map(is_whole, layers)):
        return f"target_layer_ids must be a list of whole numbers, got {layers!r}"
    if not layers:
        return "target_layer_ids must name at least one layer, or be left out, got []"
    outside = [layer for layer in layers if layer < 0 or (total is not None and layer >= total)]
    if outside:
        most = "" if total is None else f" and below num_target_layers, {total}"
        return f"target_layer_ids must be at least 0{most}, got {list(layers)}, of which {outside} do not exist"
    return None


def _wrong_spread(drafter: Mapping[str, Any], total: int | None) -> str | None:
    """Of target layers that are not named, which SGLang spreads between the second and the third last."""
    own = shape_field(drafter, "num_hidden_layers")
    # A model that is not told the target's depth takes its own (models/dflash.py).
    depth = own if total is None else total
    if own is None or own == 1 or depth >= _LEAST_SPREAD:
        return None
    return (
        f"target_layer_ids must be given for a target of fewer than {_LEAST_SPREAD} layers (num_target_layers, or "
        f"num_hidden_layers in its place), got none and {depth}"
    )


def _wrong_mask(drafter: Mapping[str, Any]) -> str | None:
    token = block_field(drafter, "mask_token")
    if token is not None and not (isinstance(token, str) and token):
        return f"mask_token must be a token's text, got {token!r}"
    return None


def _wrong_extras(drafter: Mapping[str, Any]) -> str | None:
    """Fields that SGLang reads of `dflash_config` alone."""
    dflash = drafter.get("dflash_config") or {}
    scale = dflash.get("output_multiplier", 1.0)
    if not is_number(scale) or scale <= 0:
        return f"output_multiplier must be a number above 0, got {scale!r}"
    sinks = dflash.get("attention_sink_bias", False)
    if not isinstance(sinks, bool):
        return f"attention_sink_bias must be true or false, got {sinks!r}"
    for field in CONVOLUTION_FIELDS:
        if (wrong := _wrong_whole(field, dflash.get(field), 0)) is not None:
            return wrong
    for field in ("attention_value_scale", "final_logit_softcapping"):
        value = dflash.get(field)
        if value is not None and not is_number(value):
            return f"{field} must be a number, got {value!r}"
    return None


def _wrong_together(drafter: Mapping[str, Any]) -> str | None:
    mask, vocabulary = block_field(drafter, "mask_token_id"), drafter.get("vocab_size")
    if mask is not None and vocabulary is not None and mask >= vocabulary:
        return f"mask_token_id must be below vocab_size, {vocabulary}, got {mask}"
    dflash = drafter.get("dflash_config") or {}
    taps, group = (dflash.get(field) or 0 for field in CONVOLUTION_FIELDS)
    if bool(taps) != bool(group):
        return f"conv_kernel_size and conv_group_size must be given together, got {taps} and {group}"
    rank, top_k = (dflash.get(f"selector_{part}") or 0 for part in ("rank", "top_k"))
    if bool(rank) != bool(top_k):
        return f"selector_rank and selector_top_k must be given together, got {rank!r} and {top_k!r}"
    hidden = shape_field(drafter, "hidden_size")
    if group and hidden is not None and hidden % group:
        return f"conv_group_size must divide hidden_size, {hidden}, got {group}"
    return None
