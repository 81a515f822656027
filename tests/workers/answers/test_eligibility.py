"""Which requests may go on from their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.workers.fake_engine import request
from workers.answers.eligibility import STATEFUL_FIELDS, STATEFUL_SAMPLING, why_not_resumable


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "sampling_seed": 7},
        {"min_new_tokens": 4, "max_new_tokens": None, "stop": ["x"], "logit_bias": {"1": 2.0}},
        {
            "presence_penalty": 0.0,
            "frequency_penalty": None,
            "repetition_penalty": 1.0,
            "regex": None,
            "stop_regex": [],
        },
        {"custom_params": {"a": 1}, "ignore_eos": True, "no_stop_trim": True, "skip_special_tokens": False},
    ],
)
def test_greedy_and_sampled_requests_may_go_on(sampling: dict[str, Any]) -> None:
    assert why_not_resumable(request(**sampling)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json_schema", "{}"),
        ("regex", "a*"),
        ("ebnf", "root ::= x"),
        ("structural_tag", "{}"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.05),
        ("stop_regex", "a+"),
        ("beam_width", 2),
        ("watermark", {"key": "k"}),
    ],
)
def test_a_sampling_parameter_with_state_says_so(name: str, value: object) -> None:
    reason = why_not_resumable(request(**{name: value}))
    assert reason is not None
    assert reason.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("custom_logit_processor", "pickled"),
        ("return_hidden_states", True),
        ("return_hidden_states", "last"),
        ("token_ids_logprob", [1]),
        ("return_sampling_mask", True),
        ("return_routed_experts", True),
        ("return_indexer_topk", True),
        ("session_params", {"id": "s"}),
        ("max_thinking_tokens", 8),
        ("watermark", {"key": "k"}),
    ],
)
def test_a_field_with_state_says_so(name: str, value: object) -> None:
    reason = why_not_resumable(replace(request(), extra={name: value}))
    assert reason is not None
    assert reason.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("return_logprob", "start", "resumable"), [(True, 0, False), (True, -1, True), (False, 0, True)]
)
def test_the_prompts_log_probabilities_bind_a_request_to_its_worker(
    return_logprob: bool, start: int, resumable: bool
) -> None:
    asked = replace(request(), return_logprob=return_logprob, extra={"logprob_start_len": start})
    assert (why_not_resumable(asked) is None) is resumable


def test_a_thinking_budget_binds_a_request_to_its_worker() -> None:
    assert why_not_resumable(request(custom_params={"thinking_budget": 5})) is not None


def test_a_neutral_value_of_every_field_leaves_a_request_free() -> None:
    for name, (neutral, _) in STATEFUL_SAMPLING.items():
        for value in neutral:
            assert why_not_resumable(request(**{name: value})) is None
    for name, (neutral, _) in STATEFUL_FIELDS.items():
        for value in neutral:
            assert why_not_resumable(replace(request(), extra={name: value})) is None
