"""What two configurations tell of a drafter that was trained for another target, where it may also be meant so.

What cannot be right is refused (`drafter_checks`): hidden size, vocabulary, layers out of range, a mask token that is
none. What is here makes no wrong answer, only guesses that never hit. So it is said at start, and said again where a
server's first rounds show it (`engine.pair_watch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ddtree_sglang.engine.admission.drafter_fields import block_field, text_part
from ddtree_sglang.engine.admission.drafter_shape import SLIDING, shape_field, unstated

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id")


def suspicions(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """One line for each thing that does not fit, empty where nothing tells; both as parsed `config.json`."""
    text = text_part(target)
    return [
        *_rope(drafter, text),
        *_positions(drafter, text),
        *_window(drafter),
        *_target_layers(drafter),
        *_no_mask_token(drafter),
        *_mask_token(drafter, text),
        *_tokenizer(drafter, text),
    ]


def suspicions_alone(drafter: Mapping[str, Any]) -> list[str]:
    """Those that need no target, of a drafter's parsed `config.json`: one line for each.

    What is not stated is said, too; a configuration that SGLang has read has nothing of this kind.
    """
    return [*_unstated(drafter), *_window(drafter), *_target_layers(drafter), *_no_mask_token(drafter)]


def _unstated(drafter: Mapping[str, Any]) -> Iterable[str]:
    kind = drafter.get("model_type")
    for name, default in unstated(drafter):
        value = "" if default is None else f"{default}, "
        yield f"{name}: the drafter states none, so that SGLang takes {value}the default of model_type {kind}"


def _window(drafter: Mapping[str, Any]) -> Iterable[str]:
    window = shape_field(drafter, "sliding_window")
    if SLIDING in (shape_field(drafter, "layer_types") or ()) and window is not None and window < 1:
        yield f"window: the drafter's sliding_window is {window}, which SGLang takes for none"


def _rope(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> Iterable[str]:
    mine, theirs = _rope_of(drafter), _rope_of(target)
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name]:
            yield f"rope parameters: the drafter's {name} is {mine[name]}, the target's {theirs[name]}"


def _rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base, kind and factor of the rotation, as far as a configuration has one for all layers."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = given.get("rope_theta", config.get("rope_theta"))
    kind = given.get("rope_type", given.get("type"))
    found = {"rope_theta": theta, "rope_type": kind, "factor": given.get("factor")}
    return {name: value for name, value in found.items() if value is not None}


def _positions(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> Iterable[str]:
    mine, theirs = drafter.get("max_position_embeddings"), target.get("max_position_embeddings")
    if mine is not None and theirs is not None and mine < theirs:
        yield f"positions: the drafter knows {mine}, the target {theirs}; past them no guess hits"


def _target_layers(drafter: Mapping[str, Any]) -> Iterable[str]:
    layers = block_field(drafter, "target_layer_ids")
    if layers is None:
        yield "target layers: the drafter names none, so that SGLang spreads as many as it has layers over the target"
    elif sorted(set(layers)) != list(layers):
        yield f"target layers: the drafter reads {list(layers)}, which do not ascend"


def _no_mask_token(drafter: Mapping[str, Any]) -> Iterable[str]:
    if block_field(drafter, "mask_token_id") is None:
        yield "mask token: the drafter names no mask_token_id, so that SGLang adds a token that it was not trained with"


def _mask_token(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> Iterable[str]:
    mask = block_field(drafter, "mask_token_id")
    for name in SPECIAL_TOKENS:
        if mask is not None and mask in _ids(target.get(name)):
            yield f"mask token: {mask} is the target's {name}"


def _tokenizer(drafter: Mapping[str, Any], target: Mapping[str, Any]) -> Iterable[str]:
    for name in SPECIAL_TOKENS:
        mine, theirs = _ids(drafter.get(name)), _ids(target.get(name))
        if mine and theirs and not mine & theirs:
            yield f"tokenizer: the drafter's {name} is {sorted(mine)}, the target's {sorted(theirs)}"


def _ids(value: Any) -> set[int]:
    return set() if value is None else set(value) if isinstance(value, list | tuple) else {value}
