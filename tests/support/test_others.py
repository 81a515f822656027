"""Every class that SGLang's chain serves is in a list, and admission does with it what the list says."""

from __future__ import annotations

import ast
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission.target_checks import NOT_SHOWN, check_target
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.support.families import FAMILIES
from tests.support.others import NO_TARGETS, OTHERS, Other
from tests.support.published import PAIRS
from tests.support.sglang_models import METHOD, drafted_for, models, read

SHOWN = {family.architecture for family in FAMILIES.values()} | {pair.architecture for pair in PAIRS.values()}


def test_every_class_that_hands_states_to_a_block_drafter_is_listed_once() -> None:
    assert drafted_for() - SHOWN - {*OTHERS} - NO_TARGETS == set(), "add it to tests/support/others.py"
    assert ({*OTHERS} | NO_TARGETS) - drafted_for() == set(), "no such class, or it hands no states out"
    assert {*OTHERS} & SHOWN == {*OTHERS} & NO_TARGETS == NO_TARGETS & SHOWN == set()
    assert {*NOT_SHOWN} <= {*OTHERS}


def test_classes_are_found_where_they_inherit_from_another_module(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"class A:\n    def {METHOD}(self): ...\nclass Part(A): ...\nEntryClass = [A]\n"
    heir = "from sglang.srt.models.own import A as Base\nclass B(Base): ...\nclass C: ...\nEntryClass = [B, C]\n"
    found = read("own", ast.parse(own)) | read("heir", ast.parse(heir))
    monkeypatch.setattr("tests.support.sglang_models.models", lambda: found)
    assert drafted_for() == {"A", "B"}
    assert ("mistral", "MistralForCausalLM") in models()


def model_config(name: str, other: Other) -> Any:
    """What admission asks of SGLang's ModelConfig."""
    from sglang.srt import configs
    from sglang.srt.configs.model_config import AttentionArch
    from transformers import LlamaConfig

    hf_config = getattr(configs, other.config)() if other.config else LlamaConfig()
    hf_config.architectures = [name]
    for field, value in other.fields.items():
        setattr(hf_config, field, value)
    return SimpleNamespace(
        hf_config=hf_config,
        attention_arch=AttentionArch.MLA if other.is_latent else AttentionArch.MHA,
        attention_chunk_size=None,
        is_draft_model=False,
        linear_attn_registry_result=None,
    )


@pytest.mark.sglang
@pytest.mark.parametrize("name", OTHERS)
def test_a_class_is_admitted_or_refused_as_the_list_says(name: str) -> None:
    other = OTHERS[name]
    window = 127 if "windows" in other.why else None
    for backend in ("triton", "fa3"):
        with pytest.raises(DDTreeConfigError) if other.is_refused else nullcontext() as error:
            check_target(model_config(name, other), window, (backend, backend))
        if error is not None:
            assert name in str(error.value)
            assert other.why in str(error.value)
