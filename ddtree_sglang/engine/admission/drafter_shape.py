"""The shape of a drafter's layers in its `config.json`: could SGLang's `DFlashDraftModel` be built of it?

Knows nothing of SGLang: rules are those of SGLang 0.5.23 (models/dflash.py, speculative/dflash_utils.py) and of the
classes by which Transformers 5.19 reads a `config.json` for it (`validate_layer_type`; types and defaults of Qwen3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

QWEN3 = "qwen3"
"""The `model_type` of all published drafters that were found."""

QWEN3_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "sliding_window": 4096,
}
"""What Transformers takes for fields that a `config.json` of this type does not have, and SGLang with it."""

BIASED_TYPES = frozenset({"glm", "glm4", "glm4v_moe_text", "gpt_neox", "gpt_oss", "jais2", "seed_oss"})
"""Types of text models whose attention has biases where a `config.json` does not say."""

_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_SWITCHED = ("qwen2", "qwen2_moe", QWEN3, "qwen3_moe")
"""Types whose window is dropped where `use_sliding_window` is not true."""
SLIDING = "sliding_attention"
_KINDS = ("full_attention", SLIDING)
_OLD_KINDS = ("attention",)
"""Transformers' older name of full attention."""
_ACTIVATIONS = {"silu": (), "swigluoai": ("swiglu_alpha", "swiglu_limit")}
"""With the fields that each needs."""
ROTATIONS = ("deepseek_yarn", "default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn")
"""By which SGLang scales rotations (layers/rotary_embedding/factory.py, `get_rope`); it ends over any other."""
_RENAMED_ROTATIONS = ("mrope", "su")
"""Which some of Transformers' classes turn into one of those."""


def shape_field(drafter: Mapping[str, Any], name: str) -> Any:
    """A field of the layers' shape as SGLang comes to read it; None where nothing tells, or null does."""
    place = _place(drafter, name)
    if place is not None:
        return place[name]
    return QWEN3_DEFAULTS.get(name) if drafter.get("model_type") == QWEN3 else None


def has_biases(drafter: Mapping[str, Any]) -> bool:
    """Whether SGLang builds biases of attention (models/dflash.py, `DFlashAttention`)."""
    stated = shape_field(drafter, "attention_bias")
    return drafter.get("model_type") in BIASED_TYPES if stated is None else bool(stated)


def unstated(drafter: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Fields that are not there, each with what SGLang takes in their place; None where that is not known here."""
    names: tuple[str, ...] = ("vocab_size", *_NUMBERS)
    if SLIDING in (shape_field(drafter, "layer_types") or ()):
        names = (*names, "sliding_window")
    for name in names:
        if _place(drafter, name) is None:
            yield name, shape_field(drafter, name)


def wrong_shape(drafter: Mapping[str, Any]) -> str | None:
    """What SGLang cannot build layers of, with the rule and the value; None if nothing is."""
    return (
        _wrong_type(drafter)
        or _wrong_number(drafter)
        or _wrong_kinds(drafter)
        or _wrong_window(drafter)
        or _wrong_activation(drafter)
        or _wrong_real(drafter)
    )


def _wrong_real(drafter: Mapping[str, Any]) -> str | None:
    for name in ("rms_norm_eps", "rope_theta"):
        value = shape_field(drafter, name)
        if value is not None and not is_number(value):
            return f"{name} must be a number, got {value!r}"
    for name in ("rope_scaling", "rope_parameters"):
        value = drafter.get(name)
        if value is not None and not isinstance(value, Mapping):
            return f"{name} must be an object, got {value!r}"
        scaling = (value or {}).get("rope_type", (value or {}).get("type"))
        if scaling is not None and scaling not in (*ROTATIONS, *_RENAMED_ROTATIONS):
            return f"rope_type in {name} must be one of {list(ROTATIONS)}, got {scaling!r}"
    return None


def is_number(value: Any) -> bool:
    """A number of JSON's, which true and false are not, nor NaN and Infinity, which Python reads of a file."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def is_whole(value: Any) -> bool:
    """A whole number of JSON's, which true and false are not."""
    return isinstance(value, int) and is_number(value)


def _place(drafter: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    text = drafter.get("text_config")
    places = (text, drafter) if isinstance(text, Mapping) else (drafter,)
    return next((place for place in places if name in place), None)


def _wrong_type(drafter: Mapping[str, Any]) -> str | None:
    kind = drafter.get("model_type")
    if isinstance(kind, str) and kind:
        return None
    own = drafter.get("auto_map")
    if kind is None and isinstance(own, Mapping) and "AutoConfig" in own:
        return None
    return f"model_type must be a name by which Transformers knows the configuration, such as {QWEN3}, got {kind!r}"


def _wrong_number(drafter: Mapping[str, Any]) -> str | None:
    for name in _NUMBERS:
        place, value = _place(drafter, name), shape_field(drafter, name)
        # Null heads of keys are as many as there are heads; null heads' size follows, but not in Qwen3's class.
        may_be_null = name == "num_key_value_heads" or (name == "head_dim" and drafter.get("model_type") != QWEN3)
        if place is None or (value is None and may_be_null):
            continue
        if not (is_whole(value) and value >= 1):
            return f"{name} must be a whole number of at least 1, got {value!r}"
    heads, of_keys = (shape_field(drafter, f"num_{part}_heads") for part in ("attention", "key_value"))
    if heads is not None and of_keys is not None and heads % of_keys:
        # SGLang loads it, and a kernel would read keys of heads that there are none of.
        return f"num_key_value_heads must divide num_attention_heads, {heads}, got {of_keys}"
    return None


def _wrong_kinds(drafter: Mapping[str, Any]) -> str | None:
    kinds, layers = shape_field(drafter, "layer_types"), shape_field(drafter, "num_hidden_layers")
    if kinds is None:
        return None
    if not isinstance(kinds, list | tuple):
        return f"layer_types must be a list with a kind for each layer, got {kinds!r}"
    odd = [kind for kind in kinds if kind not in (*_KINDS, *_OLD_KINDS)]
    if odd:
        return f"layer_types must be of {' and '.join(_KINDS)} alone, got {odd[0]!r}"
    if layers is not None and len(kinds) != layers:
        return f"layer_types must have one kind for each of {layers} layers (num_hidden_layers), got {len(kinds)}"
    return None


def _wrong_window(drafter: Mapping[str, Any]) -> str | None:
    kind, window = drafter.get("model_type"), shape_field(drafter, "sliding_window")
    slides = SLIDING in (shape_field(drafter, "layer_types") or ())
    if window is not None and not is_whole(window) and (slides or kind == QWEN3):
        return f"sliding_window must be a whole number, got {window!r}"
    if not slides or _has_a_window_of_its_own(drafter):
        return None
    is_on = shape_field(drafter, "use_sliding_window")
    if kind in _SWITCHED and not is_on:
        return (
            f"use_sliding_window must be true where layers are of {SLIDING}, because Transformers drops the window of "
            f"a {kind} without it, got {is_on!r}"
        )
    if window is None:
        return f"sliding_window must be given where layers are of {SLIDING}, got none"
    return None


def _has_a_window_of_its_own(drafter: Mapping[str, Any]) -> bool:
    """Nemotron's drafters, whose window stands elsewhere."""
    dflash = drafter.get("dflash_config") or {}
    return bool(drafter.get("has_embed_tokens")) and is_whole(dflash.get("swa_window_size"))


def _wrong_activation(drafter: Mapping[str, Any]) -> str | None:
    name = "silu" if _place(drafter, "hidden_act") is None else shape_field(drafter, "hidden_act")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        return f"hidden_act must be one of {sorted(_ACTIVATIONS)}, got {name!r}"
    missing = [field for field in _ACTIVATIONS[name] if shape_field(drafter, field) is None]
    return f"{missing[0]} must be given with the hidden_act {name}, got none" if missing else None
