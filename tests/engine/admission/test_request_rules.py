"""What cannot be answered exactly is refused by name; everything else passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission import request_rules
from ddtree_sglang.engine.admission.request_rules import REQUEST_RULES, refusal
from ddtree_sglang.engine.stages.node_penalties import PENALTIES
from workers.answers.eligibility import STATEFUL_SAMPLING

PLAIN = {
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.1,
    "logit_bias": {"5": 1.0},
    "sampling_seed": None,
    "custom_params": None,
}


def request(sampling: dict[str, Any] | None = None, **fields: Any) -> Any:
    base = {"custom_logit_processor": None, "return_hidden_states": False}
    return SimpleNamespace(sampling_params=SimpleNamespace(**{**PLAIN, **(sampling or {})}), **{**base, **fields})


@pytest.fixture(autouse=True)
def _not_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_rules, "_is_deterministic", lambda: False)


def test_supported_sampling_parameters_pass() -> None:
    assert refusal(request()) is None
    assert refusal(request(custom_logit_processor="p")) is None
    for name, spec in {"json_schema": "{}", "regex": "a", "ebnf": "root ::= x", "structural_tag": "{}"}.items():
        assert refusal(request({name: spec})) is None
    assert refusal(request({**dict.fromkeys(PENALTIES, 0.5), "min_new_tokens": 3})) is None


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (8, 'must be an object such as {"budget": 8}, got 8;'),
        (None, "got None;"),
        ([], "got [];"),
        ({}, "must have an option budget, got none;"),
        ({"budget": -1}, "a whole number from 0 (plain decoding) as its budget, a tree's most nodes, got -1;"),
        ({"budget": 2.5}, "got 2.5;"),
        ({"budget": "3"}, "got '3';"),
        ({"budget": True}, "got True;"),
        ({"budget": None}, "got None;"),
        # A misspelt one would change nothing, silently.
        ({"budgets": 3}, "has no option but budget, adapt and learn, got 'budgets';"),
        ({"budget": 3, "top_k": 2}, "has no option but budget, adapt and learn, got 'top_k';"),
        ({"budget": 3, "adapt": 0}, "must have true or false as its adapt, got 0;"),
        ({"budget": 3, "adapt": True, "learn": "no"}, "must have true or false as its learn, got 'no';"),
        ({"adapt": False}, "must have an option budget, got none;"),
    ],
)
def test_a_budget_that_is_no_number_of_nodes_is_refused_by_what_is_wrong_with_it(options: Any, wrong: str) -> None:
    message = str(refusal(request({"custom_params": {"ddtree": options}})))
    assert message.startswith("custom_params.ddtree ")
    assert wrong in message
    assert message.endswith("; leave it out for the server's own budget.")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"thinking_budget": 5},
        {"ddtree": {"budget": 0}},
        {"ddtree": {"budget": 9999, "adapt": False}},
        {"ddtree": {"budget": 3, "learn": False}},
    ],
)
def test_a_budget_of_the_request_and_options_of_others_pass(given: dict[str, Any]) -> None:
    assert refusal(request({"custom_params": given})) is None


def test_min_p_is_refused_where_every_draw_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request({"min_p": 0.1})
    assert refusal(asked) is None
    monkeypatch.setattr(request_rules, "_is_deterministic", lambda: True)
    assert "min_p must be 0 under --enable-deterministic-inference, got 0.1;" in str(refusal(asked))
    assert refusal(request({"min_p": 0.0})) is None


def test_every_rule_is_reachable() -> None:
    assert len({rule.name for rule in REQUEST_RULES}) == len(REQUEST_RULES)


def test_workers_know_every_penalty_and_the_value_that_is_off() -> None:
    """`workers.answers` may not import this package, so its list is held to ours here."""
    theirs = {name: values for name, (values, _) in STATEFUL_SAMPLING.items() if name.endswith("_penalty")}
    assert theirs.keys() == PENALTIES.keys()
    assert all(off in theirs[name] for name, off in PENALTIES.items())
