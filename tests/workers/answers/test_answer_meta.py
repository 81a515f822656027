"""One meta_info from several attempts'."""

from __future__ import annotations

import pytest

from workers.answers.meta import AttemptReport, merge_reports

FIRST = {
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "cached_tokens": 8,
    "cached_tokens_details": {"device": 8},
    "num_retractions": 1,
    "spec_verify_ct": 2,
    "spec_num_correct_drafts": 2,
    "spec_num_proposed_drafts": 6,
    "spec_accept_length": 2.0,
    "spec_accept_rate": 1 / 3,
    "spec_cap_length": 3.0,
    "spec_correct_drafts_histogram": [0, 2],
    "weight_version": "old",
}
SECOND = {
    "prompt_tokens": 14,
    "completion_tokens": 9,
    "cached_tokens": 13,
    "num_retractions": 2,
    "spec_verify_ct": 3,
    "spec_num_correct_drafts": 6,
    "spec_num_proposed_drafts": 9,
    "spec_accept_length": 3.0,
    "spec_accept_rate": 2 / 3,
    "spec_cap_length": 4.0,
    "spec_correct_drafts_histogram": [0, 0, 3],
    "weight_version": "new",
}


def test_counters_add_up_and_ratios_are_made_from_the_sums() -> None:
    merged = merge_reports([AttemptReport(4, dict(FIRST)), AttemptReport(9, dict(SECOND))])
    assert (merged["spec_verify_ct"], merged["spec_num_correct_drafts"], merged["spec_num_proposed_drafts"]) == (
        5,
        8,
        15,
    )
    assert merged["spec_accept_length"] == pytest.approx(13 / 5)
    assert merged["spec_accept_rate"] == pytest.approx(8 / 15)
    assert merged["spec_cap_length"] == pytest.approx((3.0 * 2 + 4.0 * 3) / 5)
    assert merged["spec_correct_drafts_histogram"] == [0, 2, 3]
    assert merged["num_retractions"] == 3
    assert merged["weight_version"] == "new"


def test_the_cache_report_is_the_first_attempts() -> None:
    merged = merge_reports([AttemptReport(4, dict(FIRST)), AttemptReport(9, dict(SECOND))])
    assert merged["cached_tokens"] == 8
    assert merged["cached_tokens_details"] == {"device": 8}
    merged = merge_reports([AttemptReport(), AttemptReport(9, dict(SECOND))])
    assert merged["cached_tokens"] == 13


def test_an_attempt_that_died_without_its_counters_does_not_count_in_the_ratios() -> None:
    silent = {"completion_tokens": 4, "cached_tokens": 0}
    merged = merge_reports([AttemptReport(4, silent), AttemptReport(9, dict(SECOND))])
    assert merged["spec_accept_length"] == pytest.approx(3.0)
    assert merged["spec_verify_ct"] == 3


def test_one_attempts_own_report_is_left_as_it_is() -> None:
    merged = merge_reports([AttemptReport(4, FIRST | {"e2e_latency": 1.0, "id": "r-0", "finish_reason": None})])
    assert merged == {k: v for k, v in FIRST.items() if k not in ("prompt_tokens", "completion_tokens")}


@pytest.mark.parametrize(
    ("counted", "expected"), [([(4, 4), (9, 5)], 9), ([(4, 3), (9, 9)], 3), ([(4, 4), (4, 4), (2, 0)], 8)]
)
def test_reasoning_ends_once(counted: list[tuple[int, int]], expected: int) -> None:
    reports = [AttemptReport(n, {"completion_tokens": n, "reasoning_tokens": r}) for n, r in counted]
    assert merge_reports(reports)["reasoning_tokens"] == expected
