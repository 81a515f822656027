"""Of which family is a drafter, and can DDTREE build trees of its scores? Answered from its `config.json` alone.

Knows nothing of SGLang: the fields and their defaults are those that SGLang 0.5.23 reads (speculative/dflash_utils.py,
speculative/lilicorr_utils.py, speculative/dspark_components/dspark_config.py, models/dspark.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddtree_sglang.engine.admission.drafter_fields import block_field, is_whole, wrong_field
from ddtree_sglang.exceptions import DDTreeConfigError

PLAIN, SELECTOR, LATTICE, MARKOV = "DFlash", "DFlash2", "LiLiCorr", "DSpark"

PLAIN_ARCHITECTURE = "DFlashDraftModel"

FAMILIES = {
    PLAIN_ARCHITECTURE: PLAIN,
    "MuseGlimmerAssistantModel": PLAIN,
    "DFlash2DraftModel": SELECTOR,
    "DFlash2BeamDraftModel": SELECTOR,
    "MiniMaxDFlash2DraftModel": SELECTOR,
    "LiLiCorrDraftModel": LATTICE,
    "DSparkDraftModel": MARKOV,
    "Qwen3DSparkModel": MARKOV,
    "LingDSparkModel": MARKOV,
}
"""Architecture -> family. Each architecture of a family is one class of SGLang under another name."""

OTHER_MODELS = {
    "DFlashLagunaForCausalLM": "DFlash with gated attention",
    "DSparkMiniMaxDraftModel": "DSpark for MiniMax",
    "DeepseekV4ForCausalLMDSpark": "DSpark for DeepSeek-V4",
    "Lfm2DSparkDraftModel": "DSpark for LFM2",
}
"""Block drafters with a model class of their own, none of which has been run under DDTREE."""

MAX_CANDIDATES = 256
"""Per depth, of a drafter that scores pairs: what the trees' kernel takes (kernels/tree_builder_triton.py)."""

LATTICE_FIELDS = (
    "candidate_topk",
    "hidden_size",
    "num_layers",
    "num_heads",
    "mlp_ratio",
    "factor_dim",
    "vector_eps",
    "logit_scale",
)
_CHAIN = "use the chain that SGLang serves it with"


@dataclass(frozen=True, slots=True)
class DrafterFamily:
    """What a drafter is, and why it is refused, if it is.

    Attributes:
        name: the family, as its authors call it.
        scores: what a candidate's score depends on, in words.
        refusal: None if DDTREE builds trees of it.
    """

    name: str
    scores: str
    refusal: str | None = None


def family_of(drafter: Mapping[str, Any]) -> DrafterFamily:
    """Of a drafter's parsed `config.json`; what is malformed is refused as of no known family."""
    malformed = wrong_field(drafter)
    if malformed is not None:
        return DrafterFamily("unknown", "unknown", malformed)
    architectures = [str(one) for one in drafter.get("architectures") or []]
    known = [name for name in architectures if name in FAMILIES]
    if known:
        return _check_head(FAMILIES[known[0]], drafter)
    other = [name for name in architectures if name in OTHER_MODELS]
    if other:
        return DrafterFamily(
            OTHER_MODELS[other[0]], "unknown", f"{other[0]} is a model of its own, not run under DDTREE yet; {_CHAIN}."
        )
    return DrafterFamily(
        "unknown",
        "unknown",
        f"DDTREE needs a block drafter of an architecture among {sorted(FAMILIES)}, got {architectures}; use one of "
        "those, or a speculative algorithm of SGLang that takes this model.",
    )


def require_served(drafter: Mapping[str, Any]) -> DrafterFamily:
    """The family of a drafter that trees can be built of.

    Raises:
        DDTreeConfigError: they cannot; the message is the refusal.
    """
    family = family_of(drafter)
    if family.refusal is not None:
        raise DDTreeConfigError(family.refusal)
    return family


def _check_head(name: str, drafter: Mapping[str, Any]) -> DrafterFamily:
    dflash: Mapping[str, Any] = drafter.get("dflash_config") or {}
    if block_field(drafter, "projector_type") == "domino":
        return DrafterFamily(
            "Domino",
            "every token of the path, through a GRU",
            "a Domino head (projector_type) scores a candidate by its whole path, and DDTREE's trees take scores that "
            f"depend on one token before; {_CHAIN}.",
        )
    family = _heads(name, drafter, dflash)
    stray = [
        head
        for head, present in (
            (SELECTOR, bool(dflash.get("selector_rank"))),
            (LATTICE, has_lattice(dflash)),
        )
        if present and head != name
    ]
    if stray and family.refusal is None:
        # SGLang builds heads by architecture and drops the weights of others without a word.
        return replace(
            family,
            refusal=f"the configuration describes a head of {stray[0]}, which architecture "
            f"{drafter.get('architectures')} does not build; correct `architectures` in the drafter's config.json.",
        )
    return family


def has_lattice(dflash: Mapping[str, Any]) -> bool:
    """Whether a `dflash_config` describes a LiLiCorr head that is in use."""
    return dflash.get("lilicorr_enabled") is not False and any(str(key).startswith("lilicorr_") for key in dflash)


def _heads(name: str, drafter: Mapping[str, Any], dflash: Mapping[str, Any]) -> DrafterFamily:
    if name == SELECTOR:
        top_k, rank = dflash.get("selector_top_k"), dflash.get("selector_rank")
        scores = f"the token before: a selector of rank {rank} among {top_k} candidates"
        numbers = {"selector_rank": (rank, None), "selector_top_k": (top_k, MAX_CANDIDATES)}
        return DrafterFamily(name, scores, _wrong_number(name, numbers))
    if name == LATTICE:
        missing = [f"lilicorr_{field}" for field in LATTICE_FIELDS if f"lilicorr_{field}" not in dflash]
        top_k = dflash.get("lilicorr_candidate_topk")
        scores = f"the token before: a lattice of {top_k} candidates, {dflash.get('lilicorr_num_layers')} layers"
        refusal = _missing(name, ", ".join(missing)) if missing else None
        number = {"lilicorr_candidate_topk": (top_k, MAX_CANDIDATES)}
        return DrafterFamily(name, scores, refusal or _wrong_number(name, number))
    if name == MARKOV:
        return _markov(drafter)
    return DrafterFamily(name, "its position alone")


def _markov(drafter: Mapping[str, Any]) -> DrafterFamily:
    """DSpark; SGLang builds its head from the top level's fields."""
    rank = drafter.get("markov_rank")
    kind = str(drafter.get("markov_head_type", "vanilla")).lower()
    scores = f"the token before: a {kind} Markov table of rank {rank}"
    refusal = _wrong_number(MARKOV, {"markov_rank": (rank, None)})
    if refusal is not None:
        return DrafterFamily(MARKOV, "unknown", refusal)
    if kind not in ("vanilla", "gated"):
        return DrafterFamily(
            MARKOV,
            f"every token of the path, through a head of type {kind}",
            f"a Markov head of type {kind!r} scores a candidate by its whole path, and DDTREE's trees take scores that "
            f"depend on one token before (vanilla, gated); {_CHAIN}.",
        )
    if (drafter.get("quantization_config") or {}).get("quant_algo") is not None:
        return DrafterFamily(
            MARKOV,
            scores,
            f"DDTREE reads rows of the Markov table and needs it unquantized, got quantization_config of "
            f"{drafter['quantization_config']['quant_algo']}; use a checkpoint in half precision.",
        )
    return DrafterFamily(MARKOV, scores)


def _wrong_number(name: str, numbers: Mapping[str, tuple[Any, int | None]]) -> str | None:
    """The first of these fields, each with its value and its limit, that is not a whole number from 1 to that limit."""
    absent = [field for field, (value, _) in numbers.items() if value is None]
    if absent:
        return _missing(name, ", ".join(absent))
    for field, (value, limit) in numbers.items():
        if not is_whole(value) or value < 1 or (limit is not None and value > limit):
            most = "" if limit is None else f" and at most {limit}"
            return (
                f"{field} of a {name} drafter must be a whole number of at least 1{most}, got {value!r}; correct the "
                "drafter's config.json."
            )
    return None


def _missing(name: str, fields: str) -> str:
    return f"a {name} drafter needs the fields {fields} in its config.json, got none; take them from its release."
