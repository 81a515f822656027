"""Of which family is a drafter, and can DDTREE build trees of its scores? Answered from its `config.json` alone.

Knows nothing of SGLang: the fields and their defaults are those that SGLang 0.5.23 reads (speculative/dflash_utils.py,
speculative/lilicorr_utils.py, speculative/dspark_components/dspark_config.py, models/dspark.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddtree_sglang.engine.admission.drafter_fields import block_field, wrong_field
from ddtree_sglang.engine.admission.drafter_shape import is_whole, shape_field
from ddtree_sglang.exceptions import DDTreeConfigError

PLAIN, SELECTOR, LATTICE, MARKOV = "DFlash", "DFlash2", "LiLiCorr", "DSpark"

PLAIN_ARCHITECTURE = "DFlashDraftModel"

FAMILIES = {
    PLAIN_ARCHITECTURE: PLAIN,
    "MuseGlimmerAssistantModel": PLAIN,
    "DFlashLagunaForCausalLM": PLAIN,
    "DFlash2DraftModel": SELECTOR,
    "DFlash2BeamDraftModel": SELECTOR,
    "MiniMaxDFlash2DraftModel": SELECTOR,
    "LiLiCorrDraftModel": LATTICE,
    "DSparkDraftModel": MARKOV,
    "Qwen3DSparkModel": MARKOV,
    "LingDSparkModel": MARKOV,
    "Lfm2DSparkDraftModel": MARKOV,
}
"""Architecture -> family: one class of SGLang under several names, of which Laguna's alone has layers of its own."""

GATED_ARCHITECTURE = "DFlashLagunaForCausalLM"
"""Its layers have gates, and each target layer's features a norm (models/dflash.py)."""

GATINGS = (True, "per-head", "per-element")
NO_GATINGS = (False, None, "disabled")
"""What its `gating` may be, with gates and without (configs/laguna.py, `normalize_gating`); it has gates by default."""

OTHER_MODELS = {
    "DSparkMiniMaxDraftModel": "DSpark for MiniMax",
    "DeepseekV4ForCausalLMDSpark": "DSpark for DeepSeek-V4",
}
"""Block drafters with a model class of their own, none of which has been run under DDTREE."""

FOREIGN_MODELS = {"DFlashSpeculator": "the library speculators"}
"""Architectures of checkpoints whose form SGLang has no class for, and whose they are."""

MAX_CANDIDATES = 256
"""Per depth, of a drafter that scores pairs: what the trees' kernel takes (kernels/tree_builder_triton.py)."""

MAX_LATTICE_CANDIDATES = 16
"""Per depth, of a LiLiCorr drafter: one group of Triton's lanes (kernels/ops/speculative/lilicorr.py)."""

LATTICE_FIELDS: Mapping[str, type[int] | type[float]] = {
    "candidate_topk": int,
    "hidden_size": int,
    "num_layers": int,
    "num_heads": int,
    "mlp_ratio": float,
    "factor_dim": int,
    "vector_eps": float,
    "logit_scale": float,
}
"""With what SGLang makes of each."""

SERVED_IN_GROUPS = (PLAIN, MARKOV, SELECTOR)
"""Families under DP attention. SGLang refuses LiLiCorr itself (dflash_worker_v2.py)."""

SERVED_SPLIT = (PLAIN, SELECTOR, MARKOV)
"""Families with prefill/decode disaggregation. LiLiCorr's head reads features of the prompt's last token, which stay
where it was prefilled."""
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
    names = drafter.get("architectures") or []
    is_list = isinstance(names, list) and all(isinstance(one, str) for one in names)
    known = [name for name in names if name in FAMILIES] if is_list else []
    if is_list and not known:
        # Before its fields, which may be those of another class.
        return _of_no_family(names)
    malformed = wrong_field(drafter) or _wrong_gating(drafter)
    if malformed is not None:
        return DrafterFamily("unknown", "unknown", malformed)
    return _check_head(FAMILIES[known[0]], drafter)


def _wrong_gating(drafter: Mapping[str, Any]) -> str | None:
    """Of what SGLang looks at in its gated class alone, and ends over with the weights at hand."""
    gating = drafter.get("gating", True)
    if GATED_ARCHITECTURE not in drafter["architectures"] or gating in (*GATINGS, *NO_GATINGS):
        return None
    return (
        f"gating of a {GATED_ARCHITECTURE} must be true, false, null, 'per-head', 'per-element' or 'disabled', got "
        f"{gating!r}; correct it in the drafter's config.json."
    )


def _of_no_family(architectures: list[str]) -> DrafterFamily:
    other = [name for name in architectures if name in OTHER_MODELS]
    if other:
        return DrafterFamily(
            OTHER_MODELS[other[0]], "unknown", f"{other[0]} is a model of its own, not run under DDTREE yet; {_CHAIN}."
        )
    foreign = [name for name in architectures if name in FOREIGN_MODELS]
    if foreign:
        return DrafterFamily(
            "unknown",
            "unknown",
            f"{foreign[0]} is a checkpoint of {FOREIGN_MODELS[foreign[0]]}, for which SGLang has no class; use one of "
            f"the same drafter in a form that it loads ({PLAIN_ARCHITECTURE}).",
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
    enabled = dflash.get("lilicorr_enabled")
    is_on = enabled is None or bool(enabled)
    return is_on and any(str(key).startswith("lilicorr_") for key in dflash)


def _heads(name: str, drafter: Mapping[str, Any], dflash: Mapping[str, Any]) -> DrafterFamily:
    if name == SELECTOR:
        top_k, rank = dflash.get("selector_top_k"), dflash.get("selector_rank")
        scores = f"the token before: a selector of rank {rank} among {top_k} candidates"
        numbers = {"selector_rank": (rank, None), "selector_top_k": (top_k, MAX_CANDIDATES)}
        return DrafterFamily(name, scores, _wrong_number(name, numbers))
    if name == LATTICE:
        return _lattice(drafter, dflash)
    if name == MARKOV:
        return _markov(drafter)
    return DrafterFamily(name, "its position alone")


def _lattice(drafter: Mapping[str, Any], dflash: Mapping[str, Any]) -> DrafterFamily:
    refusal = _wrong_lattice(drafter, dflash)
    if refusal is not None:
        return DrafterFamily(LATTICE, "unknown", refusal)
    top_k, layers = (dflash[f"lilicorr_{field}"] for field in ("candidate_topk", "num_layers"))
    return DrafterFamily(LATTICE, f"the token before: a lattice of {top_k} candidates, {layers} layers")


def _wrong_lattice(drafter: Mapping[str, Any], dflash: Mapping[str, Any]) -> str | None:
    """Rules of `_parse_lilicorr_config` (lilicorr_utils.py) and of the head's attention (models/lilicorr.py)."""
    missing = [f"lilicorr_{field}" for field in LATTICE_FIELDS if f"lilicorr_{field}" not in dflash]
    if missing:
        return _missing(LATTICE, ", ".join(missing))
    if not has_lattice(dflash):
        return (
            f"lilicorr_enabled of a {LATTICE} drafter must not be false, because its class is built with the head, got "
            f"{dflash['lilicorr_enabled']!r}; correct it in the drafter's config.json, or name the architecture "
            f"{PLAIN_ARCHITECTURE} to serve it without the head."
        )
    refusal = _wrong_number(LATTICE, {"lilicorr_candidate_topk": (dflash["lilicorr_candidate_topk"], None)})
    return refusal or _wrong_head(drafter, dflash)


def _wrong_head(drafter: Mapping[str, Any], dflash: Mapping[str, Any]) -> str | None:
    values: dict[str, Any] = {}
    for field, cast in LATTICE_FIELDS.items():
        stated = dflash[f"lilicorr_{field}"]
        try:
            values[field] = cast(stated)
        except (TypeError, ValueError, OverflowError):
            values[field] = None
        # A head of size 0 is as wide as the drafter.
        least = "of at least 0" if field == "hidden_size" else "above 0"
        value = values[field]
        if value is None or value < 0 or (value == 0 and field != "hidden_size"):
            what = "a whole number" if cast is int else "a number"
            return _wrong_lattice_field(field, f"must be {what} {least}", stated)
    top_k, heads = values["candidate_topk"], values["num_heads"]
    vocabulary = drafter.get("vocab_size")
    if vocabulary is not None and top_k > vocabulary:
        # SGLang's head takes as many as it was trained for, and no fewer (models/lilicorr.py, `score`).
        return _wrong_lattice_field("candidate_topk", f"must be at most its vocabulary, {vocabulary}", top_k)
    if top_k & (top_k - 1) or top_k > MAX_LATTICE_CANDIDATES:
        return _wrong_lattice_field(
            "candidate_topk", f"must be a power of two of at most {MAX_LATTICE_CANDIDATES}", top_k
        )
    hidden = values["hidden_size"] or shape_field(drafter, "hidden_size")
    if hidden is not None and hidden % heads:
        return _wrong_lattice_field("num_heads", f"must divide its hidden size, {hidden}", heads)
    return None


def _wrong_lattice_field(field: str, rule: str, value: Any) -> str:
    return f"lilicorr_{field} of a {LATTICE} drafter {rule}, got {value!r}; correct the drafter's config.json."


def _markov(drafter: Mapping[str, Any]) -> DrafterFamily:
    """DSpark; SGLang builds its head from the top level's fields."""
    rank = drafter.get("markov_rank")
    kind = str(drafter.get("markov_head_type", "vanilla")).lower()
    scores = f"the token before: a {kind} Markov table of rank {rank}"
    refusal = _misplaced(drafter, "markov_rank") or _wrong_number(MARKOV, {"markov_rank": (rank, None)})
    if refusal is not None:
        return DrafterFamily(MARKOV, "unknown", refusal)
    stated = _markov_type(drafter)
    if stated != kind:
        if stated is None:
            return DrafterFamily(MARKOV, "unknown", _missing(MARKOV, "markov_head_type"))
        return DrafterFamily(
            MARKOV,
            "unknown",
            f"markov_head_type of a {MARKOV} drafter must be the same at the top level, where SGLang builds the head "
            f"of it, got {kind!r} there and {stated!r} below; correct the drafter's config.json.",
        )
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


def _markov_type(drafter: Mapping[str, Any]) -> str | None:
    """The head's type as SGLang looks for it, nested fields first (dspark_config.py); it refuses one without."""
    places = (drafter.get(name) for name in ("dspark_config", "dflash_config", "text_config"))
    found = [place for place in places if isinstance(place, Mapping) and "markov_head_type" in place]
    stated = found[0]["markov_head_type"] if found else drafter.get("markov_head_type")
    return None if stated is None else str(stated).lower()


def _misplaced(drafter: Mapping[str, Any], field: str) -> str | None:
    """A field that stands below alone, where SGLang reads the top level (models/dspark.py, `build_markov_head`)."""
    if drafter.get(field) is not None:
        return None
    for place in ("dspark_config", "dflash_config", "text_config"):
        below = drafter.get(place)
        if isinstance(below, Mapping) and below.get(field) is not None:
            return (
                f"{field} of a {MARKOV} drafter must stand at the top level of its config.json, where SGLang looks for "
                f"it, got {below[field]!r} in {place}; move it up."
            )
    return None


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
