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

BIASED_TYPES = frozenset(
    {
        *("canary_decoder", "cohere_asr", "glm", "glm4", "glm4v_moe_text", "glm5_next_vision", "glm_image_text"),
        *("glm_image_vision", "glm_ocr_vision", "gpt_neox", "gpt_oss", "granite_speech5_encoder", "jais2"),
        *("janus_vision_model", "lightglue", "lw_detr", "nemotron_asr_streaming_encoder", "openai_privacy_filter"),
        *("parakeet_encoder", "qianfan_ocr_vision", "rf_detr", "seed_oss"),
    }
)
"""Types whose attention has biases where a `config.json` does not say: all that Transformers and SGLang know."""

_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_NUMBERS = (*_SHAPE, "max_position_embeddings")
ROTATIONS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "deepseek_yarn": (),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
"""Those that SGLang knows (layers/rotary_embedding/factory.py), with what it or Transformers asks for beside a type."""
_SWITCHED = ("qwen2", "qwen2_moe", QWEN3, "qwen3_moe")
"""Types whose window is dropped where `use_sliding_window` is not true."""
SLIDING = "sliding_attention"
_KINDS = ("full_attention", SLIDING)
_OLD_KINDS = ("attention",)
"""Transformers' older name of full attention."""
_ACTIVATIONS = {"silu": (), "swigluoai": ("swiglu_alpha", "swiglu_limit")}
"""With the fields that each needs."""


def shape_field(drafter: Mapping[str, Any], name: str) -> Any:
    """A field of the layers' shape as SGLang comes to read it; None where nothing tells, or null does."""
    place = _place(drafter, name)
    if place is not None:
        return place[name]
    return QWEN3_DEFAULTS.get(name) if drafter.get("model_type") == QWEN3 else None


def has_biases(drafter: Mapping[str, Any]) -> bool:
    """Whether SGLang builds biases of attention (models/dflash.py, `DFlashAttention`).

    It asks the configuration's top level, which no `text_config` stands in for.
    """
    return bool(drafter.get("attention_bias", drafter.get("model_type") in BIASED_TYPES))


def unstated(drafter: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Fields that are not there, each with what SGLang takes in their place; None where that is not known here."""
    names: tuple[str, ...] = ("vocab_size", *_SHAPE)
    if SLIDING in (shape_field(drafter, "layer_types") or ()):
        names = (*names, "sliding_window")
    for name in names:
        if _place(drafter, name) is None:
            yield name, shape_field(drafter, name)


def wrong_shape(drafter: Mapping[str, Any]) -> str | None:
    """What SGLang cannot build layers of, with the rule and the value; None if nothing is."""
    return (
        _wrong_type(drafter)
        or _wrong_switch(drafter)
        or _wrong_number(drafter)
        or _wrong_kinds(drafter)
        or _wrong_window(drafter)
        or _wrong_activation(drafter)
        or _wrong_real(drafter)
    )


def _wrong_switch(drafter: Mapping[str, Any]) -> str | None:
    """Transformers' classes take nothing else, null neither."""
    for name in ("attention_bias", "tie_word_embeddings"):
        value = drafter.get(name, False)
        if not isinstance(value, bool):
            return f"{name} must be true or false, got {value!r}"
    return None


def _wrong_real(drafter: Mapping[str, Any]) -> str | None:
    for name in ("rms_norm_eps", "rope_theta"):
        value = shape_field(drafter, name)
        if value is not None and not is_number(value):
            return f"{name} must be a number, got {value!r}"
    share = drafter.get("partial_rotary_factor", 1.0)
    # SGLang's own class of Laguna's makes 1 of null (configs/laguna.py); of others it would make a float.
    if not is_number(share) and not (share is None and drafter.get("model_type") == "laguna"):
        return f"partial_rotary_factor must be a number, got {share!r}"
    for name in ("rope_scaling", "rope_parameters"):
        value = drafter.get(name)
        if value is not None and not isinstance(value, Mapping):
            return f"{name} must be an object, got {value!r}"
        if value is not None and (wrong := _wrong_rotation(drafter, name, value)) is not None:
            return wrong
    return None


def _wrong_rotation(drafter: Mapping[str, Any], name: str, rotation: Mapping[str, Any]) -> str | None:
    """Of Qwen3's class; others rename some types, or take a rotation for each kind."""
    if drafter.get("model_type") != QWEN3:
        return None
    if (kind := next((kind for kind in _KINDS if kind in rotation), None)) is not None:
        return f"{name} must state one rotation for all layers, got one of {kind}"
    stated = rotation.get("rope_type", rotation.get("type", "default"))
    if not isinstance(stated, str) or stated not in ROTATIONS:
        return f"the rope_type of {name} must be one of {sorted(ROTATIONS)}, got {stated!r}"
    missing = [field for field in ROTATIONS[stated] if field not in rotation]
    return f"{name} must have {missing[0]} with the rope_type {stated}, got none" if missing else None


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
    width = shape_field(drafter, "head_dim")
    if width is not None and width % 2 and drafter.get("partial_rotary_factor") is None:
        return f"head_dim must be even, because its halves turn together, got {width}"
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
