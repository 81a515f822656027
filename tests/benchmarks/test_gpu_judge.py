"""Judging records: what is equal, a tie or a fault, and that nothing passes where nothing was compared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks import gpu_judge as judge
from benchmarks.gpu_cases import CASES, LIMIT_CONTEXT_LEN
from benchmarks.harness.gpu_machine import Machine


def answer(key: str, ids: list[int], rounds: int = 0, **more: Any) -> dict[str, Any]:
    return {"key": key, "prompt_len": 40, "ids": ids, "rounds": rounds, "finish": "length", **more}


def record(*waves: list[dict[str, Any]], name: str = "ddtree-16/fa3", error: str = "", **more: Any) -> dict[str, Any]:
    return {"case": name, "error": error, "waves": {f"wave-{i}": wave for i, wave in enumerate(waves)}, **more}


def plain(key: str, ids: list[int], gap: float) -> dict[str, Any]:
    """A plain answer whose second choice is always the next token, `gap` below the first."""
    return answer(key, ids, top=[[[-0.5, token], [-0.5 - gap, token + 1]] for token in ids])


REFERENCE = record([plain("a", [1, 2, 3], 0.2), plain("b", [4, 5, 6], 3.0)], name="plain/triton")


@pytest.mark.parametrize(
    ("ids", "tolerance", "passes", "told"),
    [
        ([1, 2, 3], 0.25, True, "0 different, 0 near ties"),
        ([1, 3, 9], 0.25, True, "0 different, 1 near ties"),
        ([1, 3, 9], 0.1, False, "1 different, 0 near ties, first a at token 1, margin 0.200"),
        ([1, 7, 3], 0.25, False, "first a at token 1, not among its most probable"),
        ([1, 2], 0.25, False, "first a at token 2"),
        ([1, 2, 3, 4], 0.25, False, "first a at token 3"),
    ],
)
def test_tokens_are_equal_but_where_plain_decoding_was_undecided(
    ids: list[int], tolerance: float, passes: bool, told: str
) -> None:
    found = judge.same_tokens(record([answer("a", ids), answer("b", [4, 5, 6])]), REFERENCE, tolerance)
    assert found.passed == passes
    assert told in found.reason


def test_nothing_compared_is_no_proof() -> None:
    assert not judge.same_tokens(record([answer("other", [1])]), REFERENCE, 0.25).passed
    assert not judge.same_acceptance([record([answer("a", [1], 50)])]).passed
    assert not judge.same_at_any_batch(record([answer("a", [1]), answer("b", [1])])).passed
    assert not judge.ends_at_the_limit(record([answer("a", [1, 2, 3])]), REFERENCE, 0.25).passed
    assert not judge.same_law(record([answer("a", [1])]), record([answer("a", [1])])).passed
    assert not judge.answered(record()).passed


def test_ties_everywhere_are_no_accident() -> None:
    keys = [str(i) for i in range(10)]
    reference = record([plain(key, [1, 2, 3], 0.01) for key in keys])
    tied = record([answer(key, [1, 3, 3]) for key in keys])
    half = record([answer(key, [1, 3, 3] if int(key) % 2 else [1, 2, 3]) for key in keys])
    assert not judge.same_tokens(tied, reference, 0.25).passed
    assert judge.same_tokens(half, reference, 0.25).passed


def many(rounds: int, name: str, *, other_tokens: int = 0) -> dict[str, Any]:
    """100 answers of ten rounds, the first with `rounds` more; `other_tokens` of them with other tokens, and slow."""
    answers = [answer(str(i), [i, i + 1], 10 + (rounds if i == 99 else 0)) for i in range(100)]
    for i in range(other_tokens):
        answers[i] = answer(str(i), [i, 999], 40)
    return record(answers, name=name)


@pytest.mark.parametrize(("more", "passes"), [(0, True), (20, True), (21, False), (50, False), (-21 + 11, True)])
def test_acceptance_may_differ_by_two_percent(more: int, passes: bool) -> None:
    found = judge.same_acceptance([many(0, "left"), many(more, "right")])
    assert found.passed == passes
    assert f"right takes {1 + more / 1000:.3f} times the rounds of left" in found.reason


def test_answers_that_went_other_ways_do_not_count_for_acceptance() -> None:
    assert judge.same_acceptance([many(0, "left"), many(0, "right", other_tokens=40)]).passed
    few = judge.same_acceptance([many(0, "left"), many(0, "right", other_tokens=97)])
    assert not few.passed, "30 rounds tell nothing of 2 %"


def test_one_backend_of_three_that_differs_fails() -> None:
    found = judge.same_acceptance([many(0, "left"), many(0, "middle"), many(50, "right")])
    assert not found.passed
    assert found.reason.startswith("right takes 1.05")


def test_a_server_that_counts_no_round_did_not_speculate() -> None:
    assert judge.accepts(record([answer("a", [1] * 30, 30)]), 1.0).passed
    found = judge.accepts(record([answer("a", [1] * 30)]), 1.0)
    assert not found.passed
    assert "counted no round" in found.reason


def test_least_acceptance_counts_the_bonus() -> None:
    assert judge.accepts(record([answer("a", [1] * 30, 20)]), 1.5).passed
    assert not judge.accepts(record([answer("a", [1] * 30, 21)]), 1.5).passed
    assert judge.acceptance_of(record([answer("a", [1] * 30)])) == 1.0


SERVER = {"device": "cuda", "attention_backend": "fa3", "disable_overlap_schedule": False}
CUDA = Machine("cuda", "H100", 80.0, 1, 9)


@pytest.mark.parametrize(
    ("change", "graphs", "told"),
    [
        ({}, (True, False), ""),
        ({"device": "cpu"}, (True, False), "device is cpu"),
        ({"attention_backend": "triton"}, (True, False), "attention_backend is triton"),
        ({"disable_overlap_schedule": True}, (True, False), "overlap scheduling is off"),
        ({"disable_overlap_schedule": None}, (True, False), "overlap scheduling is off"),
        ({}, (False, False), "graphs of decode and prefill are (False, False)"),
        ({}, (True, True), "graphs of decode and prefill are (True, True)"),
    ],
)
def test_a_server_is_what_its_case_says(change: dict[str, Any], graphs: tuple[bool, bool], told: str) -> None:
    made = record(server=SERVER | change, captured_graphs=graphs[0], captured_prefill=graphs[1])
    found = judge.served_as_asked(made, CASES["ddtree-16/fa3"], CUDA)
    assert found.passed == (not told)
    assert told in found.reason


def test_plain_decoding_of_the_features_counts_each_token_at_once() -> None:
    made = record(server=SERVER | {"attention_backend": "triton"}, captured_graphs=True, captured_prefill=False)
    found = judge.served_as_asked(made, CASES["features/plain"], CUDA)
    assert (found.passed, found.reason) == (False, "overlap scheduling is on")
    made["server"] |= {"disable_overlap_schedule": True}
    assert judge.served_as_asked(made, CASES["features/plain"], CUDA).passed


def test_prefill_graphs_are_asked_for_by_their_own_case() -> None:
    made = record(server=SERVER, captured_graphs=True, captured_prefill=False)
    assert not judge.served_as_asked(made, CASES["prefill-graphs/fa3"], CUDA).passed
    made["captured_prefill"] = True
    assert judge.served_as_asked(made, CASES["prefill-graphs/fa3"], CUDA).passed


def limit(length: int, beside: list[int], finish: str = "length") -> judge.Finding:
    """A request of `length` tokens in all beside a short one, against plain's that runs to the end of the context."""
    whole = list(range(LIMIT_CONTEXT_LEN - 40))
    reference = record([plain("beside-0", [1, 2, 3], 3.0), plain("end-0", whole, 3.0)])
    end = answer("end-0", whole[: length - 40], finish=finish)
    return judge.ends_at_the_limit(record([answer("beside-0", beside), end]), reference, 0.25)


def test_a_request_ends_at_most_two_blocks_before_the_context() -> None:
    assert limit(LIMIT_CONTEXT_LEN - 1, [1, 2, 3]).passed
    assert limit(LIMIT_CONTEXT_LEN - 18, [1, 2, 3]).passed
    assert not limit(LIMIT_CONTEXT_LEN - 40, [1, 2, 3]).passed
    assert not limit(LIMIT_CONTEXT_LEN - 1, [1, 2, 3], finish="abort").passed


def test_a_neighbour_of_a_request_at_the_limit_that_answers_otherwise_fails() -> None:
    found = limit(LIMIT_CONTEXT_LEN - 1, [1, 2, 9])
    assert not found.passed
    assert "beside-0 at token 2" in found.reason


def test_a_long_answer_with_a_wrong_token_before_its_end_fails() -> None:
    whole = list(range(LIMIT_CONTEXT_LEN - 40))
    reference = record([plain("end-0", whole, 3.0)])
    wrong = [*whole[:30], 999, *whole[31:70]]
    assert not judge.ends_at_the_limit(record([answer("end-0", wrong)]), reference, 0.25).passed


def test_deterministic_answers_are_the_same_alone_and_in_a_batch() -> None:
    alone = [answer("a", [1, 2])]
    assert judge.same_at_any_batch(record(alone, [answer("a", [1, 2]), answer("b", [3])])).passed
    assert not judge.same_at_any_batch(record(alone, [answer("a", [1, 3])])).passed


def sampled(counts: dict[int, int]) -> dict[str, Any]:
    tokens = Counter(counts).elements()
    return record([answer(f"law-{i}", [token, 0, 0]) for i, token in enumerate(tokens)])


def test_a_law_is_told_from_another_one() -> None:
    reference = sampled({1: 300, 2: 200, 3: 100})
    assert judge.same_law(sampled({1: 310, 2: 185, 3: 105}), reference).passed
    assert not judge.same_law(sampled({1: 420, 2: 130, 3: 50}), reference).passed
    assert not judge.same_law(sampled({1: 600}), reference).passed
    assert not judge.same_law(sampled({7: 600}), reference).passed
    narrow = judge.same_law(sampled({1: 600}), sampled({1: 600}))
    assert not narrow.passed, "a law of one outcome proves nothing"
    assert "too narrow" in narrow.reason


def test_a_server_that_failed_is_told_with_its_error() -> None:
    found = judge.answered(record([answer("a", [1])], error="ServerError: it\nended"))
    assert found == judge.Finding(False, "ddtree-16/fa3: ServerError: it ended")
    assert not judge.answered(record([answer("a", [])])).passed
