"""What `request_suites` says of two answers, and that its cases are what they claim to be."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks import request_suites
from benchmarks.harness import systems
from benchmarks.harness.json_schemas import CASES
from benchmarks.harness.request_cases import RequestCase, grammar_cases, penalty_cases, spread
from benchmarks.request_suites import Outcome, cases_of, compare, judge, parse_args, report, run, save


def answer(ids: list[int], margin: float = 1.0, second: int = 9, text: str = "1", end: str = "stop") -> dict[str, Any]:
    """An answer whose steps prefer each token to `second` by `margin`."""
    top = [[[-0.5, token, None], [-0.5 - margin, second, None]] for token in ids]
    meta = {
        "finish_reason": {"type": end},
        "completion_tokens": len(ids),
        "spec_verify_ct": 2,
        "output_top_logprobs": top,
    }
    return {"text": text, "output_ids": ids, "meta_info": meta}


CASE = RequestCase("a", "prompt", {}, str.isdigit)


@pytest.mark.parametrize(
    ("plain", "ddtree", "is_equal", "is_near_tie", "is_fault"),
    [
        (answer([1, 2, 3]), answer([1, 2, 3]), True, False, False),
        (answer([1, 2, 3]), answer([1, 2, 3], text="x"), True, False, True),
        (answer([1, 2, 3]), answer([1, 2, 3], text="\ufffd"), True, False, False),
        (answer([1, 2, 3]), answer([1, 2]), False, False, True),
        (answer([1, 2, 3]), answer([1, 2, 3], end="length"), False, False, True),
        (answer([1, 2, 3]), answer([1, 9, 3]), False, False, True),
        (answer([1, 2, 3], margin=1e-6), answer([1, 9, 3]), False, True, False),
        (answer([1, 2, 3], margin=1e-6), answer([1, 8, 3]), False, False, True),
    ],
    ids=["equal", "invalid", "no text", "shorter", "other end", "other token", "near tie", "not the tied token"],
)
def test_two_answers_are_judged(
    plain: dict[str, Any], ddtree: dict[str, Any], is_equal: bool, is_near_tie: bool, is_fault: bool
) -> None:
    verdict = judge(CASE, plain, ddtree)
    assert (verdict.is_equal, verdict.is_near_tie, verdict.is_fault) == (is_equal, is_near_tie, is_fault)


def test_the_margin_of_the_first_difference_is_told() -> None:
    plain = answer([1, 2, 3], margin=0.25)
    assert judge(CASE, plain, answer([1, 9, 3])).margin == pytest.approx(0.25)
    assert judge(CASE, plain, answer([1, 8, 3])).margin is None
    assert judge(CASE, plain, plain).margin is None


def test_a_suite_asks_both_servers_and_its_record_counts_the_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(url: str, case: RequestCase) -> dict[str, Any]:
        return answer([1, 2, 3] if url == "plain" or case.name != "b" else [1, 5, 3])

    monkeypatch.setattr(request_suites, "ask", ask)
    cases = [CASE, RequestCase("b", "prompt", {}), RequestCase("c", "prompt", {}, str.isalpha)]
    outcome = compare("grammars", cases, "plain", "ddtree", at_once=2)
    assert [verdict.is_fault for verdict in outcome.verdicts] == [False, True, True]
    assert outcome.accept_length == 1.5
    assert "| grammars | 3 | 2 | 0 | 2 | 1 | 9 | 1.50 |" in report([outcome])
    assert report([outcome]).count("FAULT") == 2
    save([outcome], Namespace(suites=["grammars", "penalties"]), tmp_path / "out.json")
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["is_complete"] is False
    assert [verdict["margin"] for verdict in record["suites"][0]["verdicts"]] == [None, None, None]
    assert record["suites"][0]["verdicts"][1]["is_equal"] is False
    assert Outcome("x", ()).accept_length == 1.0


def test_there_are_a_hundred_schemas_of_many_kinds_and_each_is_one() -> None:
    assert len(CASES) >= 100
    assert len({case.kind for case in CASES}) >= 10
    assert len({json.dumps(case.schema) for case in CASES}) == len(CASES)
    for case in CASES:
        Draft202012Validator.check_schema(case.schema)
    checked = [case for case in grammar_cases() if case.check is not None]
    assert len(checked) >= 90
    assert not any(case.check("not JSON") for case in checked if case.check)


def test_penalties_vary_and_are_the_same_ones_each_time() -> None:
    cases = penalty_cases()
    assert len(cases) == 100
    assert cases == penalty_cases()
    names = ("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens")
    assert all(sum(name in case.sampling for case in cases) > 20 for name in names)
    assert all(any(name in case.sampling for name in names) for case in cases)
    assert any(case.sampling.get("frequency_penalty", 1) < 0 for case in cases)


def test_a_spread_takes_from_everywhere() -> None:
    cases = penalty_cases(10)
    assert [cases.index(case) for case in spread(cases, 5)] == [0, 2, 4, 6, 8]
    assert spread(cases, 99) == cases


def test_flags_choose_the_requests_and_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(url: str, case: RequestCase) -> dict[str, Any]:
        asked.append(url)
        return answer([1, 2, 3])

    monkeypatch.setattr(request_suites, "ask", ask)
    flags = ["--suites", "penalties", "--cases", "20", "--likely-end", "7:3.5", "--urls", "plain", "ddtree"]
    args = parse_args([*flags, "--output", str(tmp_path / "out.json")])
    held_back = [case for case in cases_of("penalties", args) if "min_new_tokens" in case.sampling]
    assert {json.dumps(case.sampling["logit_bias"]) for case in held_back} == {'{"7": 3.5}'}
    assert run(args) == 0
    assert asked == ["plain"] * 20 + ["ddtree"] * 20
    assert json.loads((tmp_path / "out.json").read_text())["is_complete"] is True


def test_servers_of_its_own_have_penalties_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of plain decoding may else differ: SGLang's order is that of a set of classes."""
    commands = []

    @contextmanager
    def running(many: Any, common: systems.Common, trace: bool) -> Iterator[list[Any]]:
        started = [systems._process(one, common, None) for one in many]
        commands.extend((one.command, one.environment) for one in started)
        yield started

    monkeypatch.setattr(request_suites, "running", running)
    with request_suites.servers(parse_args(["--model", "m", "--draft", "d"])):
        pass
    for command, environment in commands:
        assert command[command.index("-m") + 1] == "benchmarks.harness.penalty_order"
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(systems.REPO)
    assert len(commands) == 2
