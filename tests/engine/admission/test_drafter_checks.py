"""A drafter that does not fit its target is refused from the two configurations alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.drafter_checks import (
    check_checkpoint_folder,
    check_drafter_fits_target,
    check_same_dtype,
)
from ddtree_sglang.exceptions import DDTreeConfigError

TARGET: dict[str, Any] = {"hidden_size": 64, "vocab_size": 100, "num_hidden_layers": 10}


def drafter(dflash: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "vocab_size": 100,
        "block_size": 8,
        "num_target_layers": 10,
        "dflash_config": {"mask_token_id": 4, "target_layer_ids": [1, 5, 9], **(dflash or {})},
    }
    config.update(changes)
    return config


def test_fitting_drafter_tells_its_block_and_depth() -> None:
    shape = check_drafter_fits_target(drafter(), TARGET)
    assert (shape.stated_size, shape.block_size, shape.draft_depth) == (8, 8, 7)


def test_block_size_inside_dflash_config_wins() -> None:
    assert check_drafter_fits_target(drafter({"block_size": 4}), TARGET).block_size == 4


def test_target_text_config_is_what_counts_for_multimodal_targets() -> None:
    for place in ("text_config", "llm_config"):
        assert check_drafter_fits_target(drafter(), {place: TARGET, "hidden_size": 1}).block_size == 8


@pytest.mark.parametrize(
    ("config", "rule", "found"),
    [
        (drafter(architectures=["LlamaForCausalLM"]), "DFlashDraftModel", "LlamaForCausalLM"),
        (drafter({"projector_type": "domino"}), "whole path", "Domino"),
        (drafter(hidden_size=128), "hidden_size", "128"),
        (drafter(vocab_size=101), "vocabulary", "101"),
        (drafter({"mask_token_id": 100}), "mask_token_id", "100"),
        (drafter(num_target_layers=12), "12 layers", "10"),
        (drafter({"target_layer_ids": [1, 10]}), "num_target_layers, 10", r"\[10\] do not exist"),
        (drafter({"target_layer_ids": [1, 10]}, num_target_layers=None), "target layers", r"\[10\] do not exist"),
        (drafter(block_size=1), "block_size", "got 1"),
    ],
)
def test_unfit_drafter_is_refused_with_the_rule_and_the_value(config: dict[str, Any], rule: str, found: str) -> None:
    with pytest.raises(DDTreeConfigError, match=rule) as caught:
        check_drafter_fits_target(config, TARGET)
    assert caught.match(found)


def test_disabled_lilicorr_head_is_no_head() -> None:
    config = drafter({"lilicorr_candidate_topk": 16, "lilicorr_enabled": False})
    assert check_drafter_fits_target(config, TARGET).block_size == 8


def test_checkpoint_folder_missing_or_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DDTreeConfigError, match="does not exist"):
        check_checkpoint_folder(str(tmp_path / "nowhere"), "the drafter", "--x")
    with pytest.raises(DDTreeConfigError, match=r"config\.json"):
        check_checkpoint_folder(str(tmp_path), "the drafter", "--x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DDTreeConfigError, match="weights"):
        check_checkpoint_folder(str(tmp_path), "the drafter", "--x")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert check_checkpoint_folder(str(tmp_path), "the drafter", "--x") is None


def test_made_up_weights_need_a_configuration_only(tmp_path: Path) -> None:
    with pytest.raises(DDTreeConfigError, match=r"must hold config\.json"):
        check_checkpoint_folder(str(tmp_path), "the drafter", "--x", needs_weights=False)
    (tmp_path / "config.json").write_text("{}")
    check_checkpoint_folder(str(tmp_path), "the drafter", "--x", needs_weights=False)


def test_hub_name_is_left_to_the_loader() -> None:
    assert check_checkpoint_folder("some-org/some-drafter", "the drafter", "--x") is None


def test_a_pair_of_two_dtypes_is_told_which_flag_makes_them_one() -> None:
    check_same_dtype("bfloat16", "bfloat16")
    with pytest.raises(DDTreeConfigError, match=r"got float16 and bfloat16 .* --dtype float16 or --dtype bfloat16"):
        check_same_dtype("float16", "bfloat16")


@pytest.mark.sglang
def test_sglangs_drafter_takes_the_targets_states_in_its_own_dtype_alone() -> None:
    """What the refusal of two dtypes is for: the first prefill ends over it, once both models are loaded."""
    from sglang.srt.models.dflash import DFlashDraftModel

    projection = torch.nn.Linear(6, 2, bias=False, dtype=torch.bfloat16)
    drafter = SimpleNamespace(quantizable=False, fc=projection, hidden_norm=torch.nn.Identity())
    assert DFlashDraftModel.project_target_hidden(drafter, torch.ones(3, 6, dtype=torch.bfloat16)).shape == (3, 2)
    with pytest.raises(RuntimeError, match="same dtype"):
        DFlashDraftModel.project_target_hidden(drafter, torch.ones(3, 6, dtype=torch.float32))


@pytest.mark.sglang
@pytest.mark.parametrize(("layers", "read"), [([1, 5, 9], [1, 5, 9]), (None, [1, 9, 17])])
def test_sglang_warns_of_a_target_of_another_depth_and_reads_its_layers(
    layers: list[int] | None, read: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the refusal is for: states that the drafter was not trained on, so that its guesses hit by chance."""
    from sglang.srt.model_executor.model_runner_components import spec_aux_hidden_state as module

    config = drafter({"target_layer_ids": layers}, num_hidden_layers=3)
    spec = SimpleNamespace(speculative_draft_model_path="draft", speculative_draft_model_revision=None)
    monkeypatch.setattr(module, "get_spec", lambda: spec)
    loaded = SimpleNamespace(from_server_args=lambda *_, **__: SimpleNamespace(hf_config=config))
    monkeypatch.setattr(module, "ModelConfig", loaded)
    monkeypatch.setattr(module, "_map_muse_target_layer_ids", lambda *, layer_ids, **_: layer_ids)
    found = module.SpecAuxHiddenStateConfig()
    module._resolve_dflash_aux_hidden_state(
        config=found,
        server_args=None,
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=20), hf_config=None),
        spec_algorithm=SimpleNamespace(is_dflash_family=lambda: True, is_dspark=lambda: False),
        is_draft_worker=False,
    )
    assert found.dflash_target_layer_ids == read
    assert "num_target_layers=10 differs" in caplog.text
