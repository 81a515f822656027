"""What DDTREE would do with a drafter's checkpoint, from its `config.json`: `ddtree doctor --draft`.

Of a folder the other files are looked at as well, weights by their headers alone, so that it says what a server would
of weights that are there. Knows nothing of SGLang. A line per fact; what a server asks of a pair (`drafter_checks`)
needs the target's configuration, too, so it is reported here and checked there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddtree_sglang.cpu_platform.names import QUANTIZATIONS
from ddtree_sglang.engine.admission.drafter_checks import proposes_at_the_root, shape_of
from ddtree_sglang.engine.admission.drafter_families import (
    SERVED_IN_GROUPS,
    SERVED_SPLIT,
    DrafterFamily,
    family_of,
)
from ddtree_sglang.engine.admission.drafter_fields import DEFAULT_BLOCK_SIZE, MAX_DEPTH, block_field, block_size_of
from ddtree_sglang.engine.admission.drafter_shape import SLIDING, shape_field
from ddtree_sglang.engine.admission.drafter_weights import look_at_weights
from ddtree_sglang.engine.admission.pair_facts import suspicions_alone
from ddtree_sglang.exceptions import DDTreeConfigError
from ddtree_sglang.modelopt_file import FILE

UNSTATED = "not stated"
DEFAULT_MASK_TOKEN = "<|MASK|>"
"""What SGLang looks for in the target's vocabulary where a checkpoint names none (speculative/dflash_utils.py)."""


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """Facts in order, each a name and what was found, and the verdict.

    Attributes:
        facts: as stated, or as SGLang takes them.
        refusal: None if DDTREE serves it.
        suspicions: what makes no wrong answer and may make a drafter of no use; none where it is refused.
        unseen: why no weights were looked at, where that should be said.
    """

    facts: tuple[tuple[str, str], ...]
    refusal: str | None
    suspicions: tuple[str, ...] = ()
    unseen: str | None = None

    @property
    def lines(self) -> list[str]:
        """For a person; the last one is the verdict."""
        told = [f"        {name}: {found}" for name, found in self.facts]
        told += [f"suspect {one}" for one in self.suspicions]
        if self.refusal is not None:
            return [*told, f"FAILED  DDTREE refuses it: {self.refusal}"]
        unseen = "" if self.unseen is None else f"; no weights were looked at: {self.unseen}"
        return [*told, f"ok      DDTREE serves it{unseen}"]


def read_configuration(place: str) -> dict[str, Any]:
    """The parsed `config.json` of a folder, or the file itself.

    Raises:
        DDTreeConfigError: there is none, or it is no JSON object.
    """
    path = Path(place).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    # Nested too deeply is a mistake of its own in Python.
    except (OSError, ValueError, RecursionError) as error:
        raise DDTreeConfigError(
            f"--draft must name a drafter's folder or its config.json, got {place!r} ({error}); download the file from "
            "where the drafter was published."
        ) from error
    if not isinstance(found, dict):
        raise DDTreeConfigError(f"a config.json must hold a JSON object, {path} holds a {type(found).__name__}.")
    return found


def report_of_place(place: str) -> DrafterReport:
    """Of a drafter's folder, or of its `config.json` alone.

    Raises:
        DDTreeConfigError: there is no `config.json`, or it is no JSON object.
    """
    drafter, folder = read_configuration(place), Path(place).expanduser()
    report = report_of(drafter)
    if report.refusal is not None:
        return report
    if not folder.is_dir():
        return replace(report, unseen="this is a config.json alone")
    try:
        looked = look_at_weights(folder, drafter)
    except DDTreeConfigError as error:
        return replace(report, refusal=str(error), suspicions=())
    algorithm = None if looked.told is None else looked.told.algorithm
    return replace(report, facts=_facts(drafter, family_of(drafter), algorithm), unseen=looked.unseen)


def report_of(drafter: Mapping[str, Any]) -> DrafterReport:
    """Of a parsed `config.json`; fields that cannot be read make a refusal, never an error."""
    family = family_of(drafter)
    try:
        facts, refusal = _facts(drafter, family), family.refusal or _refusal_of_block(drafter)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        refusal = family.refusal or f"a field of the config.json is not what it should be: {error}."
        return DrafterReport((("family", family.name),), refusal)
    return DrafterReport(facts, refusal, () if refusal else tuple(suspicions_alone(drafter)))


def _refusal_of_block(drafter: Mapping[str, Any]) -> str | None:
    if block_size_of(drafter) < 2:
        return (
            f"the drafter's block_size must be at least 2 (the root and one drafted position), got "
            f"{block_size_of(drafter)}; use a drafter that was trained for a longer block."
        )
    return None


def _facts(drafter: Mapping[str, Any], family: DrafterFamily, told: str | None = None) -> tuple[tuple[str, str], ...]:
    """`told`: the algorithm that a file beside it names."""
    return (
        ("architecture", _architectures(drafter)),
        ("family", family.name),
        ("a score depends on", family.scores),
        ("block", _block(drafter, family)),
        ("layers", _layers(drafter)),
        ("reads target layers", _target_layers(drafter)),
        ("mask token", _mask_token(drafter)),
        ("attention", _attention(drafter)),
        ("window", _window(drafter)),
        ("convolutions", _convolutions(drafter)),
        (
            "embedding and LM head",
            "its own, and the target's" if drafter.get("has_embed_tokens") else "the target's",
        ),
        *((("quantized by", f"{told}, says {FILE}"),) if told else ()),
        *_refused_with(drafter, family, told),
    )


def _refused_with(drafter: Mapping[str, Any], family: DrafterFamily, told: str | None) -> tuple[tuple[str, str], ...]:
    """What of a server is refused with it; nothing of a drafter that is refused with each."""
    refused = [
        feature
        for feature, families in (
            ("DP attention (--attn-dp-size)", SERVED_IN_GROUPS),
            ("prefill/decode disaggregation (--disaggregation-mode)", SERVED_SPLIT),
        )
        if family.refusal is None and family.name not in families
    ]
    if family.refusal is None and shape_of(drafter, family.name).draft_depth > MAX_DEPTH:
        refused.append(f"a GPU, whose trees are of at most {MAX_DEPTH} drafted positions")
    said = drafter.get("quantization_config") or {}
    quantized_by = told or said.get("quant_method") or said.get("quant_algo")
    if family.refusal is None and quantized_by not in (None, *QUANTIZATIONS):
        refused.append(f"a CPU, which serves plain weights and those of {' and '.join(QUANTIZATIONS)}")
    return (("refused with", " and ".join(refused)),) if refused else ()


def _architectures(drafter: Mapping[str, Any]) -> str:
    names = drafter.get("architectures")
    return ", ".join(map(str, names)) if isinstance(names, list) and names else str(names or UNSTATED)


def _block(drafter: Mapping[str, Any], family: DrafterFamily) -> str:
    shape = shape_of(drafter, family.name)
    stated = (
        "" if block_field(drafter, "block_size") is not None else f" ({UNSTATED}, SGLang takes {DEFAULT_BLOCK_SIZE})"
    )
    if proposes_at_the_root(drafter, family.name):
        masks, proposes = "masks", f"; each token's state proposes the next: {shape.draft_depth} drafted positions"
    else:
        masks, proposes = "drafted positions", ""
    return f"{shape.block_size} tokens{stated}, the root and {shape.block_size - 1} {masks}{proposes}"


def _layers(drafter: Mapping[str, Any]) -> str:
    layers, hidden = (_shape(drafter, name) for name in ("num_hidden_layers", "hidden_size"))
    return f"{layers}, hidden size {hidden}"


def _shape(drafter: Mapping[str, Any], name: str) -> str:
    found = shape_field(drafter, name)
    return UNSTATED if found is None else str(found)


def _target_layers(drafter: Mapping[str, Any]) -> str:
    layers, total = block_field(drafter, "target_layer_ids"), block_field(drafter, "num_target_layers")
    of = f" of {total}" if total is not None else ""
    return f"{[int(layer) for layer in layers]}{of}" if layers else f"evenly spread ones{of} ({UNSTATED})"


def _mask_token(drafter: Mapping[str, Any]) -> str:
    token, name = block_field(drafter, "mask_token_id"), block_field(drafter, "mask_token", DEFAULT_MASK_TOKEN)
    return f"{int(token)}" if token is not None else f"{name}, by its name in the target's vocabulary"


def _attention(drafter: Mapping[str, Any]) -> str:
    heads, of_keys = _shape(drafter, "num_attention_heads"), shape_field(drafter, "num_key_value_heads")
    sinks = ", with sinks" if block_field(drafter, "attention_sink_bias") else ""
    return f"{heads} heads, {heads if of_keys is None else of_keys} of keys{sinks}"


def _window(drafter: Mapping[str, Any]) -> str:
    kinds = list(shape_field(drafter, "layer_types") or [])
    sliding = kinds.count(SLIDING)
    return f"{shape_field(drafter, 'sliding_window')} tokens in {sliding} of {len(kinds)} layers" if sliding else "none"


def _convolutions(drafter: Mapping[str, Any]) -> str:
    dflash = drafter.get("dflash_config") or {}
    taps = dflash.get("conv_kernel_size")
    return f"{taps} taps, groups of {dflash.get('conv_group_size')}" if taps else "none"
