"""The made-up pair with gated delta nets: tokens hang on the states, the drafter knows something, a tree helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import recurrent_pair
from benchmarks.harness import tiny_measure
from benchmarks.tiny_pair import BLOCK_SIZE
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target
from ddtree_sglang.engine.admission.recurrent_checks import SERVED
from tests.device_lane.pairs import one_thread


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return recurrent_pair.write_pair(tmp_path_factory.mktemp("recurrent-pair"))


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_drafter_fits_a_target_that_is_served(folders: tuple[Path, Path]) -> None:
    target, draft = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert check_drafter_fits_target(draft, target).block_size == BLOCK_SIZE
    assert target["architectures"][0] in SERVED
    assert [(index + 1) % target["full_attention_interval"] == 0 for index in range(3)] == [
        kind == "full_attention" for kind in target["layer_types"]
    ], "what SGLang reads is what Hugging Face reads"


def test_the_same_seed_gives_the_same_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    again = recurrent_pair.write_pair(tmp_path)
    for folder, other in zip(folders, again, strict=True):
        assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_token_hangs_on_the_states(folders: tuple[Path, Path]) -> None:
    """Of tokens that no head looks at: near ones, whose words are fresh in a state, and far ones."""
    prompts = torch.tensor(tiny_measure.random_prompts(64, 48, 5))
    target = loaded(folders[0])
    with one_thread(), torch.inference_mode():
        chosen = target(prompts).logits[:, -1].argmax(-1)
        changed = prompts.clone()
        changed[:, -6:-2] = (changed[:, -6:-2] + 101) % 256
        assert (target(changed).logits[:, -1].argmax(-1) != chosen).float().mean() > 0.15
        changed = prompts.clone()
        changed[:, :8] = (changed[:, :8] + 101) % 256
        assert (target(changed).logits[:, -1].argmax(-1) != chosen).float().mean() > 0.05


def test_the_drafter_is_often_right_and_a_tree_more_often(folders: tuple[Path, Path]) -> None:
    with one_thread():
        found = tiny_measure.measure(*folders, num_prompts=6, new_tokens=24, budgets=(16,))
    assert found["accept_length"]["chain"] > 1.5
    assert found["accept_length"]["tree-16"] > 1.15 * found["accept_length"]["chain"]
    assert found["tokens_turned_by_bfloat16"] < 0.03
