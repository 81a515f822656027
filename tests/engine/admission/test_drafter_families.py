"""Configurations as each family of drafters publishes them: served, or refused and why, and what doctor says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target
from ddtree_sglang.engine.admission.drafter_families import FAMILIES, family_of, require_served
from ddtree_sglang.engine.admission.drafter_report import read_configuration, report_of
from ddtree_sglang.exceptions import DDTreeConfigError

TARGET: dict[str, Any] = {"hidden_size": 4096, "vocab_size": 151936, "num_hidden_layers": 36}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_theta": 1000000,
    "layer_types": ["full_attention"] * 5,
    "num_target_layers": 36,
    "dtype": "bfloat16",
}
FEATURES = {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}
CONVOLUTIONS = {"conv_kernel_size": 4, "conv_group_size": 64}
LILICORR = {
    "lilicorr_enabled": True,
    "lilicorr_candidate_topk": 16,
    "lilicorr_hidden_size": 512,
    "lilicorr_num_layers": 2,
    "lilicorr_num_heads": 8,
    "lilicorr_mlp_ratio": 2.0,
    "lilicorr_factor_dim": 64,
    "lilicorr_vector_eps": 1e-6,
    "lilicorr_logit_scale": 20.0,
}
DOMINO = {"projector_type": "domino", "shift_label": True, "pure_draft_prefix_len": 1, "gru_hidden_dim": 1024}


def published(architecture: str, dflash: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **QWEN3, "dflash_config": {**FEATURES, **dflash}, **top}


def selector(rank: Any, top_k: Any) -> dict[str, Any]:
    return published("DFlash2DraftModel", {"selector_rank": rank, "selector_top_k": top_k})


DFLASH = published("DFlashDraftModel", {}, block_size=16)
DFLASH2 = published("DFlash2DraftModel", {"selector_rank": 256, "selector_top_k": 16, **CONVOLUTIONS}, block_size=8)
LATTICE = published("LiLiCorrDraftModel", LILICORR, block_size=8)
DSPARK = published(
    "Qwen3DSparkModel", {}, block_size=7, markov_rank=256, markov_head_type="vanilla", enable_confidence_head=True
)
GATED = DSPARK | {"markov_head_type": "gated"}
RECURRENT = DSPARK | {"markov_head_type": "rnn"}
WITH_DOMINO = published("DFlashDraftModel", {**DOMINO, "emb_dim": 256}, block_size=16)
SERVED = {"DFlash": DFLASH, "DFlash2": DFLASH2, "LiLiCorr": LATTICE, "DSpark": DSPARK}


@pytest.mark.parametrize("name", SERVED)
def test_a_family_that_is_served_fits_its_target_and_is_told_by_name(name: str) -> None:
    config = SERVED[name]
    assert family_of(config).name == name
    assert check_drafter_fits_target(config, TARGET).stated_size == config["block_size"]
    report = report_of(config)
    assert report.refusal is None
    assert report.lines[-1] == "ok      DDTREE serves it"


def test_every_other_name_of_a_familys_class_is_served_too() -> None:
    for architecture, name in FAMILIES.items():
        assert require_served(SERVED[name] | {"architectures": [architecture]}).name == name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (WITH_DOMINO, r"a Domino head \(projector_type\) scores a candidate by its whole path"),
        (RECURRENT, "a Markov head of type 'rnn' scores a candidate by its whole path"),
        (DSPARK | {"quantization_config": {"quant_algo": "W4A16_NVFP4"}}, "unquantized, got .* W4A16_NVFP4"),
        ({key: value for key, value in DSPARK.items() if key != "markov_rank"}, "DSpark drafter needs the fields mark"),
        (DSPARK | {"markov_rank": 0}, "markov_rank of a DSpark drafter must be a whole number of at least 1, got 0"),
        (DSPARK | {"markov_rank": "256"}, "markov_rank .* got '256'"),
        (DSPARK | {"quantization_config": "fp8"}, "quantization_config must be an object, got 'fp8'"),
        (DFLASH | {"dflash_config": [1]}, r"dflash_config must be an object, got \[1\]"),
        (DFLASH | {"architectures": "DFlashDraftModel"}, "architectures must be a list of names, got 'DFlashDraftM"),
        (selector(-4, 16), "selector_rank of a DFlash2 drafter must be a whole number of at least 1, got -4"),
        (selector(True, 16), "selector_rank .* got True"),
        (selector(256, "16"), "selector_top_k .* at least 1 and at most 256, got '16'"),
        (selector(256, 257), "selector_top_k .* at most 256, got 257"),
        (
            published("LiLiCorrDraftModel", LILICORR | {"lilicorr_candidate_topk": 0}),
            "lilicorr_candidate_topk .* got 0",
        ),
        (
            published("LiLiCorrDraftModel", LILICORR | {"mask_token_id": 3}, vocab_size=15),
            "lilicorr_candidate_topk of a LiLiCorr drafter must be at most its vocabulary, 15, got 16; correct the",
        ),
        (published("DFlash2DraftModel", {}), "DFlash2 drafter needs the fields selector_rank, selector_top_k"),
        (published("LiLiCorrDraftModel", {"lilicorr_num_heads": 2}), "needs the fields lilicorr_candidate_topk, "),
        (
            published("DFlashDraftModel", {"selector_rank": 8, "selector_top_k": 4}),
            r"a head of DFlash2, which .* does not",
        ),
        (published("DFlashDraftModel", LILICORR), "a head of LiLiCorr, which"),
        (published("DSparkMiniMaxDraftModel", {}), "DSparkMiniMaxDraftModel is a model of its own, not run"),
        (published("DeepseekV4ForCausalLMDSpark", {}), "is a model of its own"),
        (published("LlamaForCausalLMEagle3", {}), r"an architecture among \[.*\], got \['LlamaForCausalLMEagle3'\]"),
        ({}, r"got \[\]"),
        (DFLASH | {"block_size": 1}, "block_size must be at least 2"),
        (DFLASH | {"block_size": "wide"}, "block_size must be a whole number of at least 0, got 'wide'"),
        (DFLASH | {"block_size": 16.5}, "block_size must be a whole number .* got 16.5"),
        (DFLASH | {"num_target_layers": "x"}, "num_target_layers must be a whole number .* got 'x'"),
        (published("DFlashDraftModel", {"mask_token_id": "x"}), "mask_token_id must be a whole number .* got 'x'"),
        (published("DFlashDraftModel", {"mask_token_id": 151936}), "mask_token_id must be below vocab_size, 151936"),
        (
            published("DFlashDraftModel", {"target_layer_ids": [1, 99]}),
            r"below num_target_layers, 36, .* \[99\] do not",
        ),
        (published("DFlashDraftModel", {"target_layer_ids": [-1, 3]}), r"at least 0 .* got \[-1, 3\], of which \[-1\]"),
        (published("DFlashDraftModel", {"target_layer_ids": "1,9"}), "must be a list of whole numbers, got '1,9'"),
        (
            published("DFlashDraftModel", CONVOLUTIONS | {"conv_group_size": 60}),
            "must divide hidden_size, 4096, got 60",
        ),
        (published("DFlashDraftModel", {"conv_kernel_size": 4}), "must be given together, got 4 and 0"),
        (published("DFlashDraftModel", {"conv_kernel_size": 2.5}), "conv_kernel_size must be a whole number .* 2.5"),
        (published("DFlashDraftModel", {"output_multiplier": "x"}), "output_multiplier must be a number above 0"),
        (
            published("DFlashDraftModel", {"output_multiplier": math.nan}),
            "output_multiplier must be .* got nan",
        ),
        (published("DFlashDraftModel", {"final_logit_softcapping": math.inf}), "softcapping must be a number, got inf"),
        (
            {"architectures": ["DFlashDraftModel"], "text_config": QWEN3, "dflash_config": FEATURES},
            "hidden_size and what goes with it must stand at the top level",
        ),
    ],
)
def test_what_is_refused_is_refused_by_doctor_and_by_a_server(config: dict[str, Any], reason: str) -> None:
    report = report_of(config)
    assert report.refusal is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(report.refusal)
    assert report.lines[-1].startswith("FAILED  DDTREE refuses it: ")
    with pytest.raises((DDTreeConfigError, ValueError)):
        check_drafter_fits_target(config, TARGET)


def test_convolutions_at_the_top_level_are_read_by_nobody() -> None:
    """As SGLang reads them, of `dflash_config` alone."""
    report = report_of(DFLASH | {"conv_kernel_size": 4})
    assert report.refusal is None
    assert dict(report.facts)["convolutions"] == "none"


@pytest.mark.parametrize(
    ("config", "is_refused"),
    [
        (DFLASH | {"block_size": 32}, False),
        (DFLASH | {"block_size": 33}, True),
        (DFLASH | {"block_size": 10**9}, True),
    ],
)
def test_doctor_tells_of_a_block_that_is_too_long_for_a_gpu(config: dict[str, Any], is_refused: bool) -> None:
    report = report_of(config)
    assert report.refusal is None
    told = dict(report.facts).get("refused with", "")
    assert ("a GPU, whose trees are of at most 31 drafted positions" in told) is is_refused


def test_a_field_that_is_null_is_one_that_is_not_stated() -> None:
    assert dict(report_of(DFLASH | {"block_size": None, "dflash_config": None}).facts)["block"].startswith(
        "16 tokens ("
    )


def test_a_head_that_is_switched_off_is_no_head() -> None:
    config = published("DFlashDraftModel", LILICORR | {"lilicorr_enabled": False})
    assert check_drafter_fits_target(config, TARGET).block_size == 16


def test_doctor_tells_what_the_configuration_says() -> None:
    facts = dict(report_of(DFLASH2).facts)
    assert facts["a score depends on"] == "the token before: a selector of rank 256 among 16 candidates"
    assert facts["block"] == "8 tokens, the root and 7 drafted positions"
    assert facts["layers"] == "5, hidden size 4096"
    assert facts["reads target layers"] == "[1, 9, 17, 25, 33] of 36"
    assert facts["mask token"] == "151669"
    assert facts["attention"] == "32 heads, 8 of keys"
    assert facts["window"] == "none"
    assert facts["convolutions"] == "4 taps, groups of 64"


@pytest.mark.parametrize(
    ("config", "block"),
    [
        (DSPARK, "7 tokens, the root and 6 masks; each token's state proposes the next: 7 drafted positions"),
        (DSPARK | {"sample_from_anchor": False}, "8 tokens, the root and 7 drafted positions"),
        (DFLASH2 | {"sample_from_anchor": True}, "8 tokens, the root and 7 drafted positions"),
    ],
)
def test_doctor_tells_the_depth_of_a_drafter_that_counts_drafted_tokens(config: dict[str, Any], block: str) -> None:
    assert dict(report_of(config).facts)["block"] == block


@pytest.mark.sglang
@pytest.mark.parametrize("stated", [{}, {"sample_from_anchor": True}, {"sample_from_anchor": False}])
def test_a_dspark_drafter_proposes_as_many_tokens_as_in_sglangs_chain(stated: dict[str, bool]) -> None:
    """And runs as many rows for them: `gamma`, or one more where the root proposes none (dspark_worker_v2.py)."""
    from sglang.srt.speculative.dspark_components.dspark_config import (
        get_dspark_sample_from_anchor,
        resolve_runtime_config,
    )

    config = DSPARK | stated
    chain = resolve_runtime_config(draft_hf_config=config, speculative_num_draft_tokens=None, target_vocab_size=151936)
    shape = check_drafter_fits_target(config, TARGET)
    assert shape.draft_depth == chain.gamma == 7
    assert shape.block_size == (chain.gamma if get_dspark_sample_from_anchor(config) else chain.gamma + 1)


def test_doctor_tells_a_window_sinks_and_what_is_not_stated() -> None:
    kinds = ["sliding_attention"] * 4 + ["full_attention"]
    config = published("DFlashDraftModel", {"attention_sink_bias": True}, layer_types=kinds, sliding_window=2048)
    del config["dflash_config"]["mask_token_id"], config["dflash_config"]["target_layer_ids"]
    facts = dict(report_of(config).facts)
    assert facts["window"] == "2048 tokens in 4 of 5 layers"
    assert facts["attention"] == "32 heads, 8 of keys, with sinks"
    assert facts["block"].startswith("16 tokens (not stated, SGLang takes 16)")
    assert facts["reads target layers"] == "evenly spread ones of 36 (not stated)"
    assert facts["mask token"] == "<|MASK|>, by its name in the target's vocabulary"


def test_a_folder_and_a_file_are_read_and_anything_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DFLASH))
    assert read_configuration(str(tmp_path)) == read_configuration(str(tmp_path / "config.json")) == DFLASH
    for place, content in (("nowhere", None), ("bad.json", "{"), ("list.json", "[]")):
        if content is not None:
            (tmp_path / place).write_text(content)
        with pytest.raises(DDTreeConfigError, match=r"config\.json"):
            read_configuration(str(tmp_path / place))
