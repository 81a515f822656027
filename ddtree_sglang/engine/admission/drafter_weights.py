"""Does a drafter's checkpoint hold the weights that SGLang's DFlash classes read, in a form that they read rightly?

Their loader passes over names that it does not know and says nothing of those that are missing (models/dflash.py,
`load_weights`, which DSpark's classes call as well), `fc` is never quantized, and layers get no names, so that a
quantized checkpoint cannot leave some of them out. Each of these gives a drafter that loads, answers, and never guesses
right. The headers of safetensors files tell before anything is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddtree_sglang.engine.admission.drafter_families import (
    GATED_ARCHITECTURE,
    LATTICE,
    MARKOV,
    NO_GATINGS,
    PLAIN,
    SELECTOR,
    family_of,
)
from ddtree_sglang.engine.admission.drafter_fields import block_field
from ddtree_sglang.engine.admission.drafter_quantization import (
    PLAIN_TYPES,
    SHARDS,
    FileQuantization,
    check_stored_as_told,
    quantization_by_file,
    quantized_names,
)
from ddtree_sglang.engine.admission.drafter_shape import has_biases, is_whole
from ddtree_sglang.exceptions import DDTreeConfigError
from ddtree_sglang.modelopt_file import FILE, is_said_in_config

_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATES = "self_attn.g_proj"
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_FUSED = {
    f"{block}.{part}": f"{block}.{whole}"
    for block, whole in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj"))
    for part in SHARDS[whole]
}
_NORMS = ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
_CONVOLUTIONS = tuple(
    f"{part}_conv.{name}" for part in ("attention", "mlp") for name in ("base_kernel", "kernel_projection.weight")
)
_WEIGHTS = ("weight", "qweight", "weight_packed")
"""A linear layer's, plain, of AWQ and GPTQ, and of compressed-tensors."""
_HEADS = {
    SELECTOR: (
        "candidate_selector.hidden_projection.weight",
        "candidate_selector.predecessor_codebook",
        "candidate_selector.successor_codebook",
    ),
    MARKOV: ("markov_head.markov_w1.weight", "markov_head.markov_w2.weight"),
}
"""What the heads that score pairs are made of, LiLiCorr's excepted, which SGLang looks after (models/lilicorr.py)."""
_LATTICE_LINEAR = re.compile(
    r"lilicorr\.(token_proj|pass_hidden_proj|context_proj|anchor_out_head|layers\.\d+\.(attn\.out|mlp\.(up|down))_proj)"
)
"""Layers of LiLiCorr's head that SGLang builds by the drafter's quantization."""
_GATE = ("markov_head.gate_proj.weight", "markov_head.gate_proj.bias")
_ALIASES = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}
_ADVICE = (
    "SGLang would serve it all the same, and hardly a guess would hit. Export the drafter again, or use another one"
)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found beside a drafter's `config.json`.

    Attributes:
        told: what `hf_quant_config.json` says.
        unseen: why no layer's weights were looked at; None where they were.
    """

    told: FileQuantization | None
    unseen: str | None


def check_drafter_weights(folder: Path) -> None:
    """Refuse a local drafter as `look_at_weights` does; a `config.json` that is no JSON object is left to SGLang.

    Raises:
        DDTreeConfigError: its weights would be read wrongly.
    """
    try:
        drafter = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(drafter, dict):
        look_at_weights(folder, drafter)


def look_at_weights(folder: Path, drafter: Mapping[str, Any]) -> Looked:
    """Refuse a local drafter whose weights would be read wrongly; one without safetensors files is left to SGLang.

    Nemotron's drafters, which have an embedding of their own, are left to it, too: their class names its layers and
    quantizes `fc`. LiLiCorr's does both, so that some of its layers may be quantized.

    Args:
        folder: of the checkpoint.
        drafter: its parsed `config.json`.

    Raises:
        DDTreeConfigError: a weight is missing, of a head that scores pairs too, or there is one that no layer has; `fc`
            or such a head is quantized, some layers are quantized and others are not, weights are quantized and no
            file says how, or they are not stored as `hf_quant_config.json` has it.
    """
    told = quantization_by_file(folder, drafter)
    tensors = stored_types(folder)
    if not tensors:
        has_files = any(folder.glob("*.safetensors"))
        return Looked(told, f"the folder has no safetensors file{' that can be read' * has_files}")
    _check_head(tensors, drafter)
    family = family_of(drafter).name
    is_known = family in (PLAIN, SELECTOR, LATTICE, MARKOV) and not is_nemotrons(drafter)
    if not is_known or not isinstance(drafter.get("num_hidden_layers"), int):
        return Looked(told, "SGLang's class for this drafter names its layers itself")
    _check_names(tensors, drafter)
    if family == LATTICE:
        _check_named_types(tensors, drafter, told)
    else:
        _check_types(tensors, drafter, told)
    return Looked(told, None)


def is_nemotrons(drafter: Mapping[str, Any]) -> bool:
    """As SGLang tells them from others (speculative/dflash_utils.py, `is_nemotron_35_draft_config`)."""
    quantization, dflash = drafter.get("quantization_config") or {}, drafter.get("dflash_config") or {}
    targets = dflash.get("target_layer_ids", drafter.get("target_layer_ids"))
    inputs = drafter.get("eagle_aux_hidden_state_layer_ids")
    return (
        not {"DFlashDraftModel", "Qwen3DSparkModel"}.isdisjoint(drafter.get("architectures") or ())
        and bool(drafter.get("has_embed_tokens"))
        and not drafter.get("has_lm_head")
        and isinstance(quantization, dict)
        and quantization.get("quant_algo") == "W4A16_NVFP4"
        and isinstance(targets, list)
        and targets != []
        and all(map(is_whole, targets))
        and inputs == [layer + 1 for layer in targets]
        and dflash.get("sample_from_anchor", drafter.get("sample_from_anchor", True)) is False
    )


def _check_head(tensors: Mapping[str, str], drafter: Mapping[str, Any]) -> None:
    family = family_of(drafter).name
    parts = _HEADS.get(family, ())
    if family == MARKOV and str(drafter.get("markov_head_type", "vanilla")).lower() == "gated":
        parts = (*parts, *_GATE)
    missing = [part for part in parts if part not in tensors]
    if missing:
        raise DDTreeConfigError(
            f"a {family} drafter's checkpoint must hold the weights of the head that scores pairs, got no "
            f"{', '.join(missing)}. SGLang would leave them as they happen to be. Use the release's own files."
        )
    codes = [part for part in parts if tensors[part] not in PLAIN_TYPES]
    if codes:
        raise DDTreeConfigError(
            f"a {family} drafter's head that scores pairs must not be quantized, because SGLang reads it as it is, got "
            f"{codes[0]} of type {tensors[codes[0]]}. {_ADVICE}."
        )


def stored_types(folder: Path) -> dict[str, str]:
    """The type of each tensor by its name in SGLang's class, from the headers of all safetensors files of a folder.

    Empty where there are none, or one is no such file or cannot be read: SGLang's loader says what is wrong with it.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(size)) if 0 < size <= path.stat().st_size else {}
        except (OSError, ValueError):
            return {}
        found |= {_own(name): str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    return found


def _own(name: str) -> str:
    return _ALIASES.get(name, name.removeprefix("model."))


def _check_names(tensors: Mapping[str, str], drafter: Mapping[str, Any]) -> None:
    num_layers = int(drafter["num_hidden_layers"])
    plain = [f"layers.{layer}.{norm}" for layer in range(num_layers) for norm in _NORMS]
    wanted = [f"{name}.weight" for name in (*plain, "norm", "hidden_norm")]
    if (drafter.get("dflash_config") or {}).get("conv_kernel_size"):
        wanted += [f"layers.{layer}.{part}" for layer in range(num_layers) for part in _CONVOLUTIONS]
    elif stray := [name for name in tensors if name.endswith(_CONVOLUTIONS)]:
        raise DDTreeConfigError(
            f"a drafter with convolutions must say so in its config.json (dflash_config.conv_kernel_size), got "
            f"{stray[0]} and nothing. {_ADVICE}."
        )
    if gate := next((name for name in tensors if _is_gates(name) and not _may_have(name, drafter)), None):
        raise DDTreeConfigError(
            f"a drafter with gates must be a {GATED_ARCHITECTURE} whose config.json has them (gating), as SGLang drops "
            f"them without a word elsewhere, got {gate}. {_ADVICE}."
        )
    wanted += _stated(drafter, num_layers)
    missing = [name for name in wanted if name not in tensors and _fused(name) not in tensors]
    missing += [name for name in (*_linears(drafter), "fc") if _weight_of(name, tensors) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DDTreeConfigError(
            f"the drafter's checkpoint must hold all weights of its {num_layers} layers, got no {missing[0]}{more}. "
            f"{_ADVICE}."
        )
    _check_biases(tensors, drafter)


def _check_biases(tensors: Mapping[str, str], drafter: Mapping[str, Any]) -> None:
    """Of layers that are stored as they are; GPTQ's tools write one of zeros for each layer that they quantize."""
    has_them = has_biases(drafter)
    for name in (*_linears(drafter), "fc"):
        if f"{_weight_of(name, tensors)}".endswith(".weight") and not (has_them and name.endswith(_LINEARS)):
            stray = next((f"{one}.bias" for one in (name, _fused(name)) if f"{one}.bias" in tensors), None)
            if stray is not None:
                raise DDTreeConfigError(
                    "a drafter's biases must be of its attention's layers alone, and its config.json must say so "
                    f"(attention_bias), got {stray}, of which SGLang builds none. {_ADVICE}."
                )


def _stated(drafter: Mapping[str, Any], num_layers: int) -> Iterator[str]:
    """What layers are built with where a field says so (models/dflash.py, `DFlashAttention`), or the class."""
    if GATED_ARCHITECTURE in drafter["architectures"]:
        # Where they are not named, SGLang spreads as many over the target as the drafter has layers.
        read = block_field(drafter, "target_layer_ids") or range(num_layers)
        yield from (f"aux_hidden_norms.{index}.weight" for index in range(len(read)))
    for layer in range(num_layers):
        if has_biases(drafter):
            yield from (f"layers.{layer}.{name}.bias" for name in _LINEARS)
        if (drafter.get("dflash_config") or {}).get("attention_sink_bias"):
            yield f"layers.{layer}.self_attn.attention_sink_bias"


def _check_types(tensors: Mapping[str, str], drafter: Mapping[str, Any], told: FileQuantization | None) -> None:
    fc = _weight_of("fc", tensors)
    if fc is None or tensors[fc] not in PLAIN_TYPES:
        kind = "none" if fc is None else f"{fc} of type {tensors[fc]}"
        raise DDTreeConfigError(
            f"a drafter's fc must not be quantized, because SGLang reads it as it is, got {kind}. {_ADVICE}."
        )
    weights = _weights(tensors, _linears(drafter))
    quantized = _check_said(weights, tensors, drafter, told)
    if told is not None:
        # A layer is asked for by the end of its name, whichever layer it is.
        check_stored_as_told(told, {one: _fused(one).rpartition(".")[2] for one in _modules(weights)}, tensors)
    elif quantized and len(quantized) != len(weights):
        plain = next(name for name in weights if name not in quantized)
        raise DDTreeConfigError(
            "a drafter's layers must be quantized all or not at all, because SGLang gives them no names by which some "
            f"could be left out, got {plain} as it was and {quantized[0]} quantized. {_ADVICE}."
        )


def _check_named_types(tensors: Mapping[str, str], drafter: Mapping[str, Any], told: FileQuantization | None) -> None:
    """Of LiLiCorr's class, whose layers and head are asked for by name (models/lilicorr.py)."""
    weights = _weights(tensors, (*_linears(drafter), "fc"))
    _check_said(weights, tensors, drafter, told)
    if told is None:
        return
    modules = {one: _fused(one) for one in _modules(weights)}
    # Where a layer of the head is plain and should not be, SGLang itself misses its scales.
    stems = [name.removesuffix(".weight") for name in quantized_names(tensors)]
    modules |= {stem: stem for stem in stems if _LATTICE_LINEAR.fullmatch(stem)}
    stray = [stem for stem in stems if stem not in modules]
    if stray:
        raise DDTreeConfigError(
            f"a {LATTICE} drafter must be quantized in those layers alone that SGLang builds by its quantization, got "
            f"{stray[0]}, too. {_ADVICE}."
        )
    check_stored_as_told(told, modules, tensors)


def _check_said(
    weights: Mapping[str, str], tensors: Mapping[str, str], drafter: Mapping[str, Any], told: FileQuantization | None
) -> list[str]:
    """The quantized ones of these layers; a file must say how."""
    quantized = [name for name, weight in weights.items() if _is_quantized(weight, tensors)]
    if quantized and told is None and not is_said_in_config(drafter):
        raise DDTreeConfigError(
            f"a drafter with quantized weights must say how in its config.json (quantization_config), or in {FILE}, "
            f"got {weights[quantized[0]]} and nothing. {_ADVICE}."
        )
    return quantized


def _linears(drafter: Mapping[str, Any]) -> Iterator[str]:
    names = (*_LINEARS, *_MLP, *((_GATES,) if _has_gates(drafter) else ()))
    return (f"layers.{layer}.{name}" for layer in range(int(drafter["num_hidden_layers"])) for name in names)


def _has_gates(drafter: Mapping[str, Any]) -> bool:
    return GATED_ARCHITECTURE in drafter["architectures"] and drafter.get("gating", True) not in NO_GATINGS


def _is_gates(name: str) -> bool:
    """Whether a tensor is of Laguna's own layers (models/dflash.py, `DFlashLagunaAttention`)."""
    return ".g_proj." in name or name.startswith("aux_hidden_norms.")


def _may_have(name: str, drafter: Mapping[str, Any]) -> bool:
    return GATED_ARCHITECTURE in drafter["architectures"] and (".g_proj." not in name or _has_gates(drafter))


def _weights(tensors: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The tensor of each of these linear layers, all of which the checkpoint has."""
    found = {name: _weight_of(name, tensors) for name in names}
    return {name: weight for name, weight in found.items() if weight is not None}


def _modules(weights: Mapping[str, str]) -> list[str]:
    """The layers as they are stored."""
    return sorted({weight.rpartition(".")[0] for weight in weights.values()})


def _weight_of(name: str, tensors: Mapping[str, str]) -> str | None:
    """The tensor of a linear layer, by itself or fused with others."""
    places = (name, _fused(name))
    return next((f"{place}.{kind}" for place in places for kind in _WEIGHTS if f"{place}.{kind}" in tensors), None)


def _fused(name: str) -> str:
    """A layer's name, or its tensor's, with that of the layer which SGLang makes of several."""
    for part, whole in _FUSED.items():
        head, found, tail = name.partition(f".{part}")
        if found and name.startswith("layers.") and tail[:1] in ("", "."):
            return f"{head}.{whole}{tail}"
    return name


def _is_quantized(weight: str, tensors: Mapping[str, str]) -> bool:
    return not weight.endswith(".weight") or tensors[weight] not in PLAIN_TYPES
