"""Does a drafter's checkpoint hold the weights that SGLang's DFlash classes read, in a form that they read rightly?

Its loader passes over names that it does not know and says nothing of those that are missing (models/dflash.py,
`load_weights`), its `fc` is never quantized, and its layers get no names, so that a quantized checkpoint cannot leave
some of them out. Each of these gives a drafter that loads, answers, and never guesses right. The headers of
safetensors files tell before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddtree_sglang.engine.admission.drafter_families import LATTICE, MARKOV, PLAIN, SELECTOR, family_of
from ddtree_sglang.exceptions import DDTreeConfigError

FLOATS = ("F64", "F32", "F16", "BF16")
"""How safetensors names types that weights are read from as they are."""
_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_FUSED = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj"),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"),
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
_GATE = ("markov_head.gate_proj.weight", "markov_head.gate_proj.bias")
_ALIASES = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}
_ADVICE = (
    "SGLang would serve it all the same, and hardly a guess would hit. Export the drafter again, or use another one"
)


def check_drafter_weights(folder: Path) -> None:
    """Refuse a local drafter whose weights would be read wrongly; one without safetensors files is left to SGLang.

    Nemotron's drafters, which have an embedding of their own, and LiLiCorr's class name their layers and quantize `fc`;
    of DSpark's the head alone is looked at.

    Raises:
        DDTreeConfigError: a weight is missing, of a head that scores pairs too, `fc` is quantized, some layers are
            quantized and others are not, or weights are quantized and no configuration says how.
    """
    tensors = stored_types(folder)
    config = folder / "config.json"
    if not tensors or not config.is_file():
        return
    drafter = json.loads(config.read_text(encoding="utf-8"))
    _check_head(tensors, drafter)
    family = family_of(drafter).name
    is_known = family in (PLAIN, SELECTOR, LATTICE) and not drafter.get("has_embed_tokens")
    if not is_known or not isinstance(drafter.get("num_hidden_layers"), int):
        return
    _check_names(tensors, drafter)
    if family != LATTICE:
        _check_types(tensors, drafter)


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


def stored_types(folder: Path) -> dict[str, str]:
    """The type of each tensor by its name in SGLang's class, from the headers of all safetensors files of a folder.

    Empty where there are none, or one is no such file: SGLang's loader says what is wrong with it.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header: dict[str, Any] = json.loads(file.read(size)) if 0 < size <= path.stat().st_size else {}
            except ValueError:
                return {}
        found |= {_own(name): str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    return found


def _own(name: str) -> str:
    name = name.removeprefix("model.")
    return _ALIASES.get(name, name)


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
    missing = [name for name in wanted if name not in tensors]
    missing += [name for name in (*_linears(num_layers), "fc") if _weight_of(name, tensors) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DDTreeConfigError(
            f"the drafter's checkpoint must hold all weights of its {num_layers} layers, got no {missing[0]}{more}. "
            f"{_ADVICE}."
        )


def _check_types(tensors: Mapping[str, str], drafter: Mapping[str, Any]) -> None:
    fc = _weight_of("fc", tensors)
    if fc is None or tensors[fc] not in FLOATS:
        kind = "none" if fc is None else f"{fc} of type {tensors[fc]}"
        raise DDTreeConfigError(
            f"a drafter's fc must not be quantized, because SGLang reads it as it is, got {kind}. {_ADVICE}."
        )
    names = {name: _weight_of(name, tensors) for name in _linears(int(drafter["num_hidden_layers"]))}
    quantized = {name: weight for name, weight in names.items() if weight and _is_quantized(weight, tensors)}
    if not quantized:
        return
    if drafter.get("quantization_config") is None and drafter.get("compression_config") is None:
        raise DDTreeConfigError(
            "a drafter with quantized weights must say how in its config.json (quantization_config), got "
            f"{next(iter(quantized.values()))} and nothing. {_ADVICE}."
        )
    if len(quantized) != len(names):
        plain = next(name for name in names if name not in quantized)
        raise DDTreeConfigError(
            "a drafter's layers must be quantized all or not at all, because SGLang gives them no names by which some "
            f"could be left out, got {plain} as it was and {next(iter(quantized))} quantized. {_ADVICE}."
        )


def _linears(num_layers: int) -> Iterator[str]:
    return (f"layers.{layer}.{name}" for layer in range(num_layers) for name in (*_LINEARS, *_MLP))


def _weight_of(name: str, tensors: Mapping[str, str]) -> str | None:
    """The tensor of a linear layer, by itself or fused with others."""
    prefix, _, short = name.rpartition(".")
    parent, _, part = prefix.rpartition(".")
    fused = _FUSED.get(f"{part}.{short}")
    places = (name, f"{parent}.{fused}") if fused else (name,)
    return next((f"{place}.{kind}" for place in places for kind in _WEIGHTS if f"{place}.{kind}" in tensors), None)


def _is_quantized(weight: str, tensors: Mapping[str, str]) -> bool:
    return not weight.endswith(".weight") or tensors[weight] not in FLOATS
