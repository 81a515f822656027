"""Every class that SGLang's chain serves is in a list, and admission does with it what the list says."""

from __future__ import annotations

import ast
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.engine.admission.target_checks import NOT_HANDED_OUT, NOT_SHOWN, check_target
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.device_lane import wide_keys
from tests.device_lane.conftest import OTHER_NAMES
from tests.device_lane.conftest import PAIRS as LANE_PAIRS
from tests.device_lane.hybrid_targets import WITH_IMAGES
from tests.support.document import SCENES_BY_NAME
from tests.support.families import FAMILIES
from tests.support.others import NO_TARGETS, OTHERS, SHAPE, Other
from tests.support.published import PAIRS
from tests.support.sglang_models import METHOD, drafted_for, methods_of, models, read

SHOWN = {pair.architecture for pair in PAIRS.values()} | {
    name for family in FAMILIES.values() for name in (family.architecture, family.text_alone)
}


def test_every_class_that_hands_states_to_a_block_drafter_is_listed_once() -> None:
    assert drafted_for() - SHOWN - {*OTHERS} - NO_TARGETS == set(), "add it to tests/support/others.py"
    assert ({*OTHERS} | NO_TARGETS) - drafted_for() == set(), "no such class, or it hands no states out"
    assert {*OTHERS} & SHOWN == {*OTHERS} & NO_TARGETS == NO_TARGETS & SHOWN == set()
    assert {*NOT_SHOWN, *NOT_HANDED_OUT} <= {*OTHERS}


def test_layers_of_qwen3_vl_lack_the_method_that_its_class_asks_for_states_by() -> None:
    """Once they have it, the classes need no refusal."""
    assert METHOD in methods_of(("qwen3_vl", "Qwen3VLForConditionalGeneration"))
    assert METHOD not in methods_of(("qwen3_vl", "Qwen3LLMModel"))
    assert METHOD in methods_of(("qwen3_vl_moe", "Qwen3MoeLLMModel"))
    assert models()["cosmos3", "Cosmos3ForConditionalGeneration"].bases == (
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    )


def test_classes_are_found_where_they_inherit_from_another_module(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"class A:\n    def {METHOD}(self): ...\nclass Part(A): ...\nEntryClass = [A]\n"
    part = f"class D:\n    def {METHOD}(self): ...\nclass E:\n    def __getattr__(self, name): ...\nclass F(E): ...\n"
    part += "class G: ...\nEntryClass = [E, F, G]\n"
    heir = "from sglang.srt.models.own import A as Base\nclass B(Base): ...\nclass C: ...\nEntryClass = [B, C]\n"
    bare = "class H:\n    def __getattr__(self, name): ...\nEntryClass = H\n"
    texts = {"own": own, "heir": heir, "part": part, "bare": bare}
    found = {place: model for name, text in texts.items() for place, model in read(name, ast.parse(text)).items()}
    monkeypatch.setattr("tests.support.sglang_models.models", lambda: found)
    assert drafted_for() == {"A", "B", "E", "F"}
    assert ("mistral", "MistralForCausalLM") in models()


def model_config(name: str, other: Other, folder: Path) -> Any:
    """SGLang's, of a checkpoint with this class; with Llama's configuration where it has none of its own."""
    from sglang.srt.configs.model_config import ModelConfig

    config = {"architectures": [name], "model_type": other.model_type or "llama", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**config, **other.fields}))
    return ModelConfig(str(folder))


@pytest.mark.sglang
@pytest.mark.parametrize("name", OTHERS)
def test_a_class_is_admitted_or_refused_as_the_list_says(name: str, tmp_path: Path) -> None:
    other = OTHERS[name]
    config = model_config(name, other, tmp_path)
    window = config.sliding_window_size if config.is_hybrid_swa else None
    for backend in ("triton", "fa3"):
        with pytest.raises(DDTreeConfigError) if other.is_refused else nullcontext() as error:
            check_target(config, window, (backend, backend))
        if error is not None:
            assert name in str(error.value)
            assert other.why in str(error.value)


def test_a_class_that_a_scene_serves_is_the_one_of_its_pair() -> None:
    """By the name that its pair is saved with."""
    classes = {**WITH_IMAGES, **wide_keys.CLASSES}
    saved = {
        **{pair: classes.get(LANE_PAIRS[pair][0], "") for pair in LANE_PAIRS},
        **{pair: published.kind for pair, published in OTHER_NAMES.items()},
    }
    served = {name: SCENES_BY_NAME[other.scene] for name, other in OTHERS.items() if other.scene}
    assert {name: saved[scene.pair] for name, scene in served.items()} == {name: name for name in served}
    assert {scene.algorithm for scene in served.values()} == {"DDTREE"}


@pytest.mark.sglang
@pytest.mark.parametrize(("context_len", "is_served"), [(512, True), (1024, False)])
def test_phi_3_is_refused_where_longrope_switches_its_factors(
    context_len: int, is_served: bool, tmp_path: Path
) -> None:
    other = OTHERS["Phi3ForCausalLM"]
    factors = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    fields = {**SHAPE, "original_max_position_embeddings": 512, "rope_scaling": factors}
    fields |= {"max_position_embeddings": context_len, "pad_token_id": 0}
    config = model_config("Phi3ForCausalLM", replace(other, fields=fields), tmp_path)
    with nullcontext() if is_served else pytest.raises(DDTreeConfigError, match="set --context-length 512"):
        check_target(config, None, ("triton", "triton"))


@pytest.mark.sglang
@pytest.mark.parametrize("name", [name for name, other in OTHERS.items() if not (other.is_refused or other.scene)])
def test_sglang_reads_the_attention_that_the_list_says(name: str, tmp_path: Path) -> None:
    """From the configuration of the class itself, or by its name alone where it has none of its own."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    other = OTHERS[name]
    config = model_config(name, other, tmp_path)
    assert config.attention_arch == (AttentionArch.MLA if other.is_latent else AttentionArch.MHA)
    assert other.why.startswith("latent attention" if other.is_latent else ("windows and", "full attention"))
    assert (config.sliding_window_size if config.is_hybrid_swa else None) == other.window
    if other.window is not None:
        assert (config.swa_attention_layer_ids, config.full_attention_layer_ids) == ([0, 2], [1, 3])
    assert config.attention_chunk_size is None
    assert mambaish_config(config) is None
