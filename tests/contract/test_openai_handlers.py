"""SGLang's OpenAI handlers find in our tokenizer manager what they take from theirs, and its constants are ours."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from ddtree_sglang.contract.check import Row, mismatches
from workers.answers.resume import DEFAULT_MAX_NEW_TOKENS
from workers.http.generate_input import PASSED_ON, UNSUPPORTED

pytestmark = pytest.mark.sglang

# What the handlers read of their tokenizer manager and do not use for text models: none so far.
NOT_FOR_TEXT: frozenset[str] = frozenset()


def source_of(module: str) -> ast.Module:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], *module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "module",
    [
        "sglang.srt.entrypoints.openai.serving_base",
        "sglang.srt.entrypoints.openai.serving_chat",
        "sglang.srt.entrypoints.openai.serving_completions",
        "sglang.srt.parser.template_manager",
    ],
)
def test_the_token_manager_has_all_that_the_handlers_take_from_theirs(module: str) -> None:
    taken = {
        node.attr
        for node in ast.walk(source_of(module))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Attribute) and node.value.attr == "tokenizer_manager")
            or (isinstance(node.value, ast.Name) and node.value.id == "tokenizer_manager")
        )
    }
    ours = ast.parse((Path(__file__).parents[2] / "workers" / "http" / "tokenizer_manager.py").read_text())
    manager = next(
        node for node in ours.body if isinstance(node, ast.ClassDef) and node.name == "TokenizerManagerAdapter"
    )
    given = {node.name for node in manager.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)} | {
        node.attr for node in ast.walk(manager) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert taken, "the handlers read nothing of their manager: this test looks in the wrong place"
    assert taken - given <= NOT_FOR_TEXT


def test_every_field_of_a_request_that_is_named_here_exists() -> None:
    fields = " ".join((*PASSED_ON, *UNSUPPORTED))
    assert mismatches([Row("sglang.srt.managers.io_struct", "GenerateReqInput", fields, "generate_input")]) == []


def test_the_default_length_is_sglangs() -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    assert SamplingParams().max_new_tokens == DEFAULT_MAX_NEW_TOKENS


def test_longest_prompt_of_an_engine_is_what_resumption_takes_it_for() -> None:
    """`ModelTokenizer.limits` and `DDTreeServer._max_input_len` repeat this arithmetic."""
    worker = ast.unparse(source_of("sglang.srt.managers.tp_worker"))
    assert "max_req_len = min(self.model_config.context_len - 1, kv_capacity - 1)" in worker
    assert "max_req_input_len = max_req_len - 5" in worker
    check = ast.unparse(source_of("sglang.srt.managers.utils"))
    assert "if len(req.origin_input_ids) >= max_req_input_len:" in check
