"""Values that end a scheduler are found in a tokenized request, and nothing else is."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from ddtree_sglang.engine.admission.request_fields import (
    MOST_ANSWERS,
    check_fields,
    check_meetings,
    check_number_of_answers,
)
from ddtree_sglang.engine.admission.request_kinds import REQUEST, SAMPLING

VOCABULARY = 100
INF = float("inf")
_SAMPLING = {"temperature": 1.0, "top_k": 5, "logit_bias": None, "min_new_tokens": 0, "stop_token_ids": None}


def request(input_ids: list[int] | None = (3, 4), **fields: Any) -> Any:
    """A plain request; sampling parameters and fields of the request by name."""
    plain = {**dict.fromkeys(SAMPLING), **_SAMPLING}
    sampling = {name: fields.pop(name, off) for name, off in plain.items()}
    base = {
        **dict.fromkeys(REQUEST),
        "mm_inputs": None,
        "return_logprob": False,
        "top_logprobs_num": 0,
        "logprob_start_len": -1,
        "multi_item_delimiter_indices": None,
        "token_indices_to_pool": None,
        "input_embeds": None,
        "positional_embed_overrides": None,
        "session_params": None,
        "session_id": None,
    }
    ids = None if input_ids is None else array("q", input_ids)
    return SimpleNamespace(input_ids=ids, sampling_params=SimpleNamespace(**sampling), **{**base, **fields})


def of_session(**fields: Any) -> Any:
    """As SGLang's `SessionParams`, which takes values of any type."""
    names = ("id", "rid", "offset", "replace", "drop_previous_output")
    return SimpleNamespace(**{**dict.fromkeys(names), **fields})


@pytest.mark.parametrize("ids", [[0], [VOCABULARY - 1], [3, 99, 0]])
def test_tokens_of_the_model_pass(ids: list[int] | None) -> None:
    assert check_fields(request(ids), VOCABULARY) is None


@pytest.mark.parametrize(("ids", "named"), [([5, VOCABULARY], 100), ([-1, 5], -1), ([1, 10_000_000, -2], 10_000_000)])
def test_a_token_that_the_embedding_has_no_row_of_is_named(ids: list[int], named: int) -> None:
    assert f"got {named};" in str(check_fields(request(ids), VOCABULARY))


def test_ids_that_mark_an_image_are_the_processors_own() -> None:
    assert check_fields(request([10_000_000], mm_inputs=object()), VOCABULARY) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 2**31 - 1, "min_new_tokens": 2**31 - 1, "max_new_tokens": 2**70},
        {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "top_p": 1, "priority": -(2**70)},
        {"regex": "a", "extra_key": "", "rid": "r"},
        {"input_ids": [], "session_params": of_session(id="s")},
        {"session_params": of_session(id="", rid="a", offset=-(2**70), replace=False, drop_previous_output=True)},
        {"input_ids": None, "input_embeds": [[0.5]]},
        {"positional_embed_overrides": SimpleNamespace(reconstruct=None)},
        {"temperature": 3e38},
        {"logit_bias": {"5": -INF, "6": 3e38}},
        {"logit_bias": {str(token): -INF for token in range(VOCABULARY - 1)}},
        {"min_new_tokens": 2**31 - 1, "stop_token_ids": {0, VOCABULARY - 1, 5.0}},
        {"stop_token_ids": {-1, 2**63, "a"}},
        {"return_logprob": True, "top_logprobs_num": VOCABULARY, "logprob_start_len": 0},
        {"top_logprobs_num": -1, "logprob_start_len": -9},
        {"token_indices_to_pool": [0, 1]},
    ],
)
def test_values_at_the_edge_pass(fields: dict[str, Any]) -> None:
    assert check_fields(request(**fields), VOCABULARY) is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input_ids": []}, "at least one token, got none"),
        ({"input_ids": None}, "at least one token, got none"),
        ({"input_ids": [], "session_params": of_session(rid="a")}, "at least one token, got none"),
        ({"input_ids": [], "session_params": of_session(id="s"), "session_id": "t"}, "at least one token, got none"),
        ({"session_params": of_session(id=["s"])}, "session_params.id must be of type str, got ['s']"),
        ({"session_params": of_session(id="s", rid={})}, "session_params.rid must be of type str, got {}"),
        ({"session_params": of_session(id="s", offset="x")}, "session_params.offset must be of type int, got 'x'"),
        ({"session_params": of_session(id="s", offset=1.5)}, "session_params.offset must be of type int, got 1.5"),
        ({"session_params": of_session(id="s", offset=True)}, "session_params.offset must be of type int, got True"),
        ({"session_params": of_session(id="s", replace=1)}, "session_params.replace must be of type bool, got 1"),
        ({"input_ids": None, "session_params": of_session(id="s")}, "must have tokens, got embeddings"),
        ({"positional_embed_overrides": {"positions": [0]}}, "must be SGLang's PositionalEmbeds, got dict"),
        ({"top_k": 2**31}, "top_k must be at most 2147483647, got 2147483648"),
        ({"min_new_tokens": 2**40}, "min_new_tokens must be at most 2147483647, got 1099511627776"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number, got 1.5"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a whole number, got 2.0"),
        ({"stream_interval": "3"}, "stream_interval must be a whole number, got '3'"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"regex": ["a"]}, "regex must be a text, got ['a']"),
        ({"extra_key": ["a"]}, "extra_key must be a text, got ['a']"),
        ({"priority": 0.5}, "priority must be a whole number, got 0.5"),
        ({"temperature": 0.0}, "got 0.0; 0 is greedy"),
        ({"temperature": 1e39}, "temperature must be at most 3.4e+38, got 1e+39"),
        ({"logit_bias": {"5": float("nan")}}, "got nan for token 5"),
        ({"logit_bias": {"5": INF}}, "got inf for token 5"),
        ({"logit_bias": {"5": 1e39}}, "got 1e+39 for token 5"),
        ({"logit_bias": {str(token): -1e39 for token in range(VOCABULARY)}}, "must leave a token"),
        ({"min_new_tokens": 2**31}, "min_new_tokens must be at most 2147483647, got 2147483648"),
        ({"min_new_tokens": INF}, "min_new_tokens must be a whole number, got inf"),
        ({"min_new_tokens": 1, "stop_token_ids": {VOCABULARY}}, "0 to 99, with min_new_tokens, got 100"),
        ({"min_new_tokens": 1, "stop_token_ids": {-1}}, "with min_new_tokens, got -1"),
        ({"min_new_tokens": 1, "stop_token_ids": {"a"}}, "with min_new_tokens, got 'a'"),
        ({"return_logprob": True, "top_logprobs_num": -1}, "top_logprobs_num must be from 0 to 100, got -1"),
        ({"return_logprob": True, "top_logprobs_num": 101}, "got 101"),
        ({"return_logprob": True, "logprob_start_len": -2}, "logprob_start_len must be -1"),
        ({"multi_item_delimiter_indices": [2]}, "must be places of the prompt, 0 to 1, got 2"),
        ({"token_indices_to_pool": [-1]}, "token_indices_to_pool must be places of the prompt"),
    ],
)
def test_values_past_the_edge_are_named(fields: dict[str, Any], named: str) -> None:
    assert named in str(check_fields(request(**fields), VOCABULARY))


@pytest.mark.parametrize(("num_answers", "num_prompts"), [(1, 10**6), (MOST_ANSWERS, 1), (2, MOST_ANSWERS // 2)])
def test_as_many_answers_as_fit(num_answers: int, num_prompts: int) -> None:
    assert check_number_of_answers(num_answers, num_prompts) is None


@pytest.mark.parametrize(
    ("num_answers", "num_prompts"), [(0, 1), (-1, 1), ("2", 1), (1.5, 1), (None, 1), (True, 1), (2**40, 1), (2, 5000)]
)
def test_no_more_answers_than_that(num_answers: Any, num_prompts: int) -> None:
    assert str(num_answers) in str(check_number_of_answers(num_answers, num_prompts))


def test_every_kind_is_that_of_sglangs_field() -> None:
    """So that a plain request passes, whatever its defaults are."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    for struct, kinds in ((SamplingParams, SAMPLING), (TokenizedGenerateReqInput, REQUEST)):
        annotations = {field.name: field.type for field in msgspec.structs.fields(struct)}
        for name, (_, kind) in kinds.items():
            declared = annotations[name]
            own = [one for one in (get_args(declared) or (declared,)) if one is not type(None)]
            assert all(issubclass(one, kind) for one in own), name


@pytest.mark.parametrize(
    ("mode", "backend", "num_answers", "is_refused"),
    [
        ("null", "mooncake", 1, False),
        ("null", "mooncake", 2, False),
        ("decode", "mooncake", 1, False),
        ("decode", "mooncake", 2, True),
        ("prefill", "nixl", 3, True),
        ("decode", "fake", 2, False),
    ],
)
def test_several_answers_are_not_asked_of_servers_that_share_requests_out(
    mode: str, backend: str, num_answers: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pytest.importorskip("sglang.srt.runtime_context")
    disagg = SimpleNamespace(disaggregation_mode=mode, disaggregation_transfer_backend=backend)
    monkeypatch.setattr(context, "get_disagg", lambda: disagg)
    reason = check_meetings(num_answers)
    assert (reason is not None) == is_refused
    if reason is not None:
        assert f"--disaggregation-mode {mode}" in reason
        assert f"got {num_answers}" in reason
