"""Configurations that SGLang's parser or classes reject are refused with the rule; those that they take are not.

Each one is asked of SGLang, too: of Transformers' class, then of the drafter's own, built without memory for weights.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.engine.admission.drafter_checks import check_drafter_configuration
from ddtree_sglang.engine.admission.drafter_families import (
    GATED_ARCHITECTURE,
    GATINGS,
    LATTICE,
    LATTICE_FIELDS,
    MARKOV,
    MAX_LATTICE_CANDIDATES,
    NO_GATINGS,
    PLAIN,
    SELECTOR,
)
from ddtree_sglang.engine.admission.drafter_quantization import METHODS
from ddtree_sglang.engine.admission.drafter_report import report_of
from ddtree_sglang.engine.admission.drafter_shape import QWEN3_DEFAULTS, ROTATIONS
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.drafter_folders import build

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOWS = {"layer_types": [SLIDING, SLIDING, FULL], "sliding_window": 32, "use_sliding_window": True}
PLAIN_CONFIG: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "layer_types": [FULL, FULL, FULL],
    "num_target_layers": 36,
    "block_size": 8,
    "dflash_config": {"mask_token_id": 4, "target_layer_ids": [1, 9, 17]},
}
HEAD = {
    "lilicorr_enabled": True,
    "lilicorr_candidate_topk": 16,
    "lilicorr_hidden_size": 32,
    "lilicorr_num_layers": 2,
    "lilicorr_num_heads": 8,
    "lilicorr_mlp_ratio": 2.0,
    "lilicorr_factor_dim": 8,
    "lilicorr_vector_eps": 1e-6,
    "lilicorr_logit_scale": 20.0,
}


def plain(*left_out: str, dflash: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A drafter of DFlash, without some fields and with others."""
    config = {**PLAIN_CONFIG, **top}
    config["dflash_config"] = {**PLAIN_CONFIG["dflash_config"], **(dflash or {})}
    for name in left_out:
        config.pop(name, None)
        config["dflash_config"].pop(name, None)
    return config


def lattice(**fields: Any) -> dict[str, Any]:
    """A drafter of LiLiCorr; fields without their prefix."""
    own = {f"lilicorr_{name}": value for name, value in fields.items()}
    return plain(architectures=["LiLiCorrDraftModel"], dflash=HEAD | own)


def markov(*left_out: str, dflash: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A drafter of DSpark."""
    own = {"architectures": ["Qwen3DSparkModel"], "markov_rank": 4, "markov_head_type": "vanilla"}
    return plain(*left_out, dflash=dflash, **{**own, **top})


REJECTED = {
    "no target layers": (
        plain(dflash={"target_layer_ids": []}),
        r"target_layer_ids must name at least one layer, .* got \[\]",
    ),
    "no target layers above": (
        plain("target_layer_ids") | {"target_layer_ids": []},
        "target_layer_ids must name at least one",
    ),
    "layers spread over too few": (
        plain("target_layer_ids", num_target_layers=3),
        r"fewer than 4 layers .* got none and 3",
    ),
    "layers spread over as few as its own": (plain("target_layer_ids", "num_target_layers"), "got none and 3"),
    "no layers": (
        plain(num_hidden_layers=0, layer_types=[]),
        "num_hidden_layers must be a whole number of at least 1, got 0",
    ),
    "layers below none": (plain("layer_types", num_hidden_layers=-1), "num_hidden_layers .* got -1"),
    "layers in words": (plain(num_hidden_layers="3"), "num_hidden_layers .* got '3'"),
    "null layers": (plain(num_hidden_layers=None), "num_hidden_layers .* got None"),
    "too few kinds": (plain(layer_types=[FULL, FULL]), "one kind for each of 3 layers .* got 2"),
    "too many kinds": (plain(layer_types=[FULL] * 4), "one kind for each of 3 layers .* got 4"),
    "no kinds": (plain(layer_types=[]), "one kind for each of 3 layers .* got 0"),
    "kinds of layers that it does not have": (plain("num_hidden_layers"), "one kind for each of 32 layers .* got 3"),
    "an unknown kind": (plain(layer_types=[FULL, FULL, "odd"]), "full_attention and sliding_attention alone, got 'odd"),
    "a kind of other models": (plain(layer_types=[FULL, FULL, "linear_attention"]), "alone, got 'linear_attention'"),
    "one kind as text": (plain(layer_types=FULL), "layer_types must be a list with a kind for each .* got 'full_att"),
    "no window": (plain(layer_types=[SLIDING, SLIDING, FULL]), "use_sliding_window must be true where .* got None"),
    "a window that is off": (plain(**WINDOWS | {"use_sliding_window": False}), "drops the window .* got False"),
    "a null window": (plain(**WINDOWS | {"sliding_window": None}), "sliding_window must be given .* got none"),
    "a window in words": (
        plain(**WINDOWS | {"sliding_window": "wide"}),
        "sliding_window must be a whole .* got 'wide'",
    ),
    "a window of parts": (plain(**WINDOWS | {"sliding_window": 32.5}), "sliding_window must be a whole .* got 32.5"),
    "an unused window in words": (plain(sliding_window="wide"), "sliding_window must be a whole .* got 'wide'"),
    "a mask that is no text": (plain(dflash={"mask_token": 7}), "mask_token must be a token's text, got 7"),
    "an empty mask": (plain(mask_token=""), "mask_token must be a token's text, got ''"),
    "no heads": (plain(num_attention_heads=0), "num_attention_heads .* at least 1, got 0"),
    "no heads of keys": (plain(num_key_value_heads=0), "num_key_value_heads .* at least 1, got 0"),
    "heads of keys below none": (plain(num_key_value_heads=-2), "num_key_value_heads .* got -2"),
    "heads of no size": (plain(head_dim=0), "head_dim .* got 0"),
    "heads of null size": (plain(head_dim=None), "head_dim .* got None"),
    "null states": (plain(hidden_size=None), "hidden_size .* got None"),
    "no intermediate states": (plain(intermediate_size=0), "intermediate_size .* got 0"),
    "another activation": (plain(hidden_act="gelu"), r"hidden_act must be one of \['silu', 'swigluoai'\], got 'gelu'"),
    "an activation without its fields": (plain(hidden_act="swigluoai"), "swiglu_alpha must be given .* got none"),
    "no type": (plain("model_type"), "model_type must be a name by which Transformers .* got None"),
    "null biases": (plain(attention_bias=None), "attention_bias must be true or false, got None"),
    "biases as a number": (plain(attention_bias=1), "attention_bias must be true or false, got 1"),
    "null biases of another type": (
        plain("head_dim", "layer_types", model_type="gpt_oss", attention_bias=None),
        "attention_bias must be true or false, got None",
    ),
    "a head that is tied in words": (plain(tie_word_embeddings="yes"), "tie_word_embeddings must be true or .* 'yes'"),
    "positions in words": (plain(max_position_embeddings="long"), "max_position_embeddings must be a whole .* 'long'"),
    "positions below none": (plain(max_position_embeddings=-1), "max_position_embeddings .* got -1"),
    "heads of odd size": (plain(head_dim=15), "head_dim must be even, .* got 15"),
    "a turned part in words": (plain(partial_rotary_factor="half"), "partial_rotary_factor must be a number, got 'h"),
    "a null turned part": (plain(partial_rotary_factor=None), "partial_rotary_factor must be a number, got None"),
    "a text's configuration in words": (plain(text_config="x"), "text_config must be an object, got 'x'"),
    "an unknown rotation": (plain(rope_scaling={"rope_type": "odd"}), "rope_type of rope_scaling must be .* got 'odd'"),
    **{
        f"a rotation by {kind} without {needed}": (
            plain(rope_parameters={"rope_type": kind, "rope_theta": 1e4}),
            f"rope_parameters must have {needed} with the rope_type {kind}, got none",
        )
        for kind, needed in (
            *((kind, "factor") for kind in ("linear", "dynamic", "yarn", "llama3")),
            ("longrope", "short_factor"),
        )
    },
    "a rotation for each kind of layers": (
        plain(rope_parameters={FULL: {"rope_type": "default", "rope_theta": 1e4}}),
        "rope_parameters must state one rotation for all layers, got one of full_attention",
    ),
    "gates of another kind": (
        plain(architectures=[GATED_ARCHITECTURE], gating="per-token"),
        "gating of a DFlashLagunaForCausalLM must be true, .* got 'per-token'",
    ),
    "gates by number": (plain(architectures=[GATED_ARCHITECTURE], gating=[1]), r"gating of a .* got \[1\]"),
    "an epsilon in words": (plain(rms_norm_eps="x"), "rms_norm_eps must be a number, got 'x'"),
    "a rotation in words": (plain(rope_theta="x"), "rope_theta must be a number, got 'x'"),
    "an unknown quantization": (
        plain(quantization_config={"quant_method": "martian"}),
        "quant_method in quantization_config must be one of .*'fp8'.*, got 'martian'",
    ),
    "sinks as a number": (plain(dflash={"attention_sink_bias": 1}), "attention_sink_bias must be true or false, got 1"),
    "a scale in words": (plain(dflash={"attention_value_scale": "x"}), "attention_value_scale must be a number, got"),
    "a cap in words": (plain(dflash={"final_logit_softcapping": "x"}), "final_logit_softcapping must be a number"),
    "a null multiplier": (
        plain(dflash={"output_multiplier": None}),
        "output_multiplier must be a number above 0, got N",
    ),
    "half a selector": (plain(dflash={"selector_top_k": 4}), "selector_top_k must be given together, got 0 and 4"),
    "a lattice that is off": (lattice(enabled=False), "lilicorr_enabled of a LiLiCorr drafter must not be false, .* F"),
    "a lattice that is 0": (lattice(enabled=0), "lilicorr_enabled .* got 0"),
    "a lattice of no layers": (lattice(num_layers=0), "lilicorr_num_layers .* above 0, got 0"),
    "a lattice of layers below none": (lattice(num_layers=-3), "lilicorr_num_layers .* a whole number above 0, got -3"),
    "a lattice of layers in words": (lattice(num_layers="x"), "lilicorr_num_layers .* got 'x'"),
    "a lattice of odd heads": (lattice(num_heads=5), "lilicorr_num_heads .* must divide its hidden size, 32, got 5"),
    "a lattice as wide as its drafter": (lattice(num_heads=5, hidden_size=0), "hidden size, 64, got 5"),
    "a lattice of no heads": (lattice(num_heads=0), "lilicorr_num_heads .* above 0, got 0"),
    "a lattice of a width below none": (lattice(hidden_size=-32), "lilicorr_hidden_size .* of at least 0, got -32"),
    "a lattice of null width": (lattice(hidden_size=None), "lilicorr_hidden_size .* got None"),
    "a lattice that is too wide": (lattice(candidate_topk=32), "candidate_topk .* power of two of at most 16, got 32"),
    "a lattice of twelve": (lattice(candidate_topk=12), "candidate_topk .* power of two of at most 16, got 12"),
    "a lattice without an MLP": (lattice(mlp_ratio=0), "lilicorr_mlp_ratio .* must be a number above 0, got 0"),
    "a lattice of no factors": (lattice(factor_dim=0), "lilicorr_factor_dim .* got 0"),
    "a lattice of an epsilon below 0": (lattice(vector_eps=-1.0), "lilicorr_vector_eps .* got -1.0"),
    "a lattice of a scale in words": (lattice(logit_scale="x"), "lilicorr_logit_scale .* got 'x'"),
    "a Markov head of no type": (markov("markov_head_type"), "DSpark drafter needs the fields markov_head_type"),
    "a Markov head of null type": (markov(markov_head_type=None), "DSpark drafter needs the fields markov_head_type"),
    "a Markov rank below": (
        markov("markov_rank") | {"dflash_config": {**PLAIN_CONFIG["dflash_config"], "markov_rank": 4}},
        "markov_rank of a DSpark drafter must stand at the top level .* got 4 in dflash_config; move it up",
    ),
}
"""What SGLang ends over, with words of the refusal."""

SOUND = {
    "plain": plain(),
    "windows": plain(**WINDOWS),
    "kinds that are not stated": plain("layer_types"),
    "kinds by their old name": plain(layer_types=["attention"] * 3),
    "null heads of keys": plain(num_key_value_heads=None),
    "another type": plain("head_dim", "layer_types", model_type="llama"),
    "another type's window": plain(model_type="llama", layer_types=[SLIDING, SLIDING, FULL], sliding_window=32),
    "one layer of a small target": plain("target_layer_ids", "layer_types", num_hidden_layers=1, num_target_layers=2),
    "gates": plain(architectures=[GATED_ARCHITECTURE]),
    **{
        f"gates: {gating}": plain(architectures=[GATED_ARCHITECTURE], gating=gating)
        for gating in (*GATINGS, *NO_GATINGS)
    },
    "gates that no class reads": plain(gating="per-token"),
    "biases": plain(attention_bias=True),
    "a rotation by its old name": plain(rope_scaling={"type": "linear", "factor": 2.0}),
    "a rotation without a type": plain(rope_parameters={"rope_theta": 1e4}),
    "yarn": plain(rope_scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}),
    "a turned part": plain(partial_rotary_factor=0.5),
    "a null turned part of Laguna's class": plain(
        architectures=["DFlashLagunaForCausalLM"], model_type="laguna", partial_rotary_factor=None
    ),
    "repeated layers": plain(dflash={"target_layer_ids": [1, 1, 9]}),
    "a method of quantization": plain(quantization_config={"quant_method": "FP8"}),
    "hardly a window": plain(**WINDOWS | {"sliding_window": 0}),
    "a default window": plain(layer_types=[SLIDING, SLIDING, FULL], use_sliding_window=True),
    "default states": plain("hidden_size", "num_attention_heads", "num_hidden_layers", "layer_types"),
    "a lattice": lattice(),
    "a lattice of null": lattice(enabled=None),
    "a lattice as wide as its drafter": lattice(hidden_size=0),
    "a lattice in words": lattice(num_layers="2", vector_eps="1e-6"),
    "a lattice of one": lattice(candidate_topk=1),
    "a Markov head": markov(),
    "a Markov head that is told below, too": markov(dflash={"markov_head_type": "vanilla"}),
}
"""What SGLang takes."""


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", REJECTED)
def test_what_sglang_rejects_is_refused_by_doctor_and_by_a_server(name: str, tmp_path: Path) -> None:
    config, reason = REJECTED[name]
    report = report_of(config)
    with pytest.raises(DDTreeConfigError, match=reason) as caught:
        check_drafter_configuration(write(tmp_path, config))
    assert report.refusal == str(caught.value)
    assert report.lines[-1].startswith("FAILED  DDTREE refuses it: ")
    assert report.suspicions == ()
    assert "of 16 candidates" not in "".join(report.lines)


@pytest.mark.sglang
@pytest.mark.parametrize("name", REJECTED)
def test_sglang_rejects_it(name: str, engine: None, tmp_path: Path) -> None:
    from huggingface_hub.errors import StrictDataclassError

    kinds = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError)
    with pytest.raises((*kinds, StrictDataclassError)):
        build(write(tmp_path, REJECTED[name][0]))


@pytest.mark.parametrize("name", SOUND)
def test_what_sglang_takes_is_served(name: str, tmp_path: Path) -> None:
    check_drafter_configuration(write(tmp_path, SOUND[name]))
    assert report_of(SOUND[name]).lines[-1] == "ok      DDTREE serves it"


@pytest.mark.sglang
@pytest.mark.parametrize("name", SOUND)
def test_sglang_takes_it(name: str, engine: None, tmp_path: Path) -> None:
    assert len(build(write(tmp_path, SOUND[name])).layers) >= 1


@pytest.mark.parametrize(("heads", "of_keys"), [(32, 5), (4, 8), (4, None)])
def test_heads_of_keys_that_do_not_divide_the_heads_are_refused(heads: int, of_keys: int | None) -> None:
    """One that is not stated is 32 in Qwen3's class."""
    left_out = ("num_key_value_heads",) if of_keys is None else ()
    stated = {} if of_keys is None else {"num_key_value_heads": of_keys}
    config = plain(*left_out, num_attention_heads=heads, **stated)
    rule = f"num_key_value_heads must divide num_attention_heads, {heads}, got {of_keys or 32}; correct it"
    assert report_of(config).refusal == f"{rule} in the drafter's config.json."


@pytest.mark.sglang
def test_sglang_builds_a_drafter_whose_last_heads_have_no_keys(engine: None, tmp_path: Path) -> None:
    """What that refusal is for: a kernel divides a head's number by heads per head of keys, and reads past the last."""
    attention = build(write(tmp_path, plain(num_attention_heads=32, num_key_value_heads=5))).layers[0].self_attn
    assert (attention.num_heads - 1) // (attention.num_heads // attention.num_kv_heads) >= attention.num_kv_heads


@pytest.mark.sglang
@pytest.mark.parametrize("name", QWEN3_DEFAULTS)
def test_what_is_not_stated_is_transformers_default(name: str) -> None:
    from transformers import Qwen3Config

    assert getattr(Qwen3Config(use_sliding_window=True), name) == QWEN3_DEFAULTS[name]


@pytest.mark.sglang
def test_the_lattices_fields_are_sglangs() -> None:
    from sglang.kernels.ops.speculative.lilicorr import MAX_FUSED_CANDIDATE_TOPK
    from sglang.srt.speculative.lilicorr_utils import LiLiCorrConfig

    assert MAX_LATTICE_CANDIDATES == MAX_FUSED_CANDIDATE_TOPK
    assert {name: kind.__name__ for name, kind in LATTICE_FIELDS.items()} == LiLiCorrConfig.__annotations__


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (plain(), []),
        (
            plain(dflash={"target_layer_ids": [1, 1, 9]}),
            ["target layers: the drafter reads [1, 1, 9], which do not asc"],
        ),
        (plain("target_layer_ids"), ["target layers: the drafter names none"]),
        (plain("mask_token_id"), ["mask token: the drafter names no mask_token_id"]),
        (
            plain(**WINDOWS | {"sliding_window": 0}),
            ["window: the drafter's sliding_window is 0, which SGLang takes for n"],
        ),
        (
            SOUND["a default window"],
            ["sliding_window: the drafter states none, so that SGLang takes 4096, the default"],
        ),
        (
            plain("hidden_size", "num_attention_heads"),
            ["hidden_size: the drafter states none, so that SGLang takes 4096", "num_attention_heads: "],
        ),
        (
            SOUND["another type"],
            ["head_dim: the drafter states none, so that SGLang takes the default of model_type llama"],
        ),
    ],
)
def test_doctor_tells_what_it_suspects_without_a_target(config: dict[str, Any], told: list[str]) -> None:
    report = report_of(config)
    assert [line for line in report.lines if line.startswith("suspect ")] == [
        f"suspect {line}" for line in report.suspicions
    ]
    assert len(report.suspicions) == len(told)
    assert all(line.startswith(words) for line, words in zip(report.suspicions, told, strict=True))


def test_doctor_tells_which_features_of_a_server_are_refused_with_a_family() -> None:
    families = {PLAIN: plain(), MARKOV: markov(), LATTICE: lattice()}
    families[SELECTOR] = plain(architectures=["DFlash2DraftModel"], dflash={"selector_rank": 4, "selector_top_k": 4})
    told = {name: dict(report_of(config).facts).get("refused with") for name, config in families.items()}
    both = "DP attention (--attn-dp-size) and prefill/decode disaggregation (--disaggregation-mode)"
    assert told == {PLAIN: None, MARKOV: None, SELECTOR: None, LATTICE: both}


def test_a_checkpoint_of_another_library_is_named() -> None:
    report = report_of(plain(architectures=["DFlashSpeculator"]))
    assert report.refusal == (
        "DFlashSpeculator is a checkpoint of the library speculators, for which SGLang has no class; use one of the "
        "same drafter in a form that it loads (DFlashDraftModel)."
    )


@pytest.mark.sglang
def test_rotations_are_those_that_sglang_scales_by(engine: None) -> None:
    from sglang.srt.layers.rotary_embedding import factory

    source = inspect.getsource(factory.get_rope)
    assert sorted(set(re.findall(r'scaling_type == "(\w+)"', source))) == sorted(ROTATIONS)


@pytest.mark.sglang
def test_methods_of_quantization_are_those_that_sglang_knows(engine: None) -> None:
    """Its names here, and those of other devices; compressed tensors have two spellings."""
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS

    assert set(QUANTIZATION_METHODS) - METHODS == set()
    assert METHODS - set(QUANTIZATION_METHODS) <= {"compressed_tensors", "gptq", "mxfp4"}


def test_a_null_below_hides_the_top_levels_field_as_it_does_for_sglang() -> None:
    facts = dict(report_of(plain(dflash={"block_size": None})).facts)
    assert facts["block"].startswith("16 tokens (not stated")


def test_what_is_no_json_object_is_left_to_sglang(tmp_path: Path) -> None:
    check_drafter_configuration(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        check_drafter_configuration(tmp_path)
