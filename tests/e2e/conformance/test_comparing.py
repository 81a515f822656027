"""The comparison finds any change of any compared value, and no more."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

import pytest

from tests.e2e import stream_cases
from tests.e2e.conformance.comparing import (
    FLOAT_TOLERANCE,
    Comparison,
    field_paths,
    inconsistencies,
    is_compared,
    without_forbidden,
)
from tests.e2e.conformance.planting import changed, differ, drop, places

BODY: dict[str, Any] = {
    "id": "cmpl-1",
    "created": 17,
    "choices": [
        {
            "index": 0,
            "message": {"content": "a b", "tool_calls": None},
            "finish_reason": "stop",
            "matched_stop": 2,
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]},
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached": False},
    "meta_info": {"spec_verify_ct": 4, "e2e_latency": 0.25, "output_ids": [5, 6]},
}


@pytest.mark.parametrize("change", [differ, drop])
@pytest.mark.parametrize("at", list(places(BODY)), ids=lambda at: ".".join(map(str, at)))
def test_a_change_anywhere_is_found(at: tuple[Any, ...], change: Any) -> None:
    found = list(Comparison().differences(BODY, changed(BODY, at, change)))
    is_seen = all(is_compared(step) for step in at if isinstance(step, str))
    assert bool(found) == is_seen
    assert is_seen or at[-1] in ("id", "created", "spec_verify_ct", "e2e_latency")


def test_equal_bodies_do_not_differ_and_every_value_was_looked_at() -> None:
    comparison = Comparison()
    assert not list(comparison.differences(BODY, copy.deepcopy(BODY)))
    assert comparison.num_values >= len(list(places(BODY))) - 4


def test_floats_may_differ_within_the_tolerance_and_kinds_may_not() -> None:
    def found(plain: Any, ddtree: Any) -> bool:
        return bool(list(Comparison().differences(plain, ddtree)))

    assert not found(-1.0, -1.0 - FLOAT_TOLERANCE / 2)
    assert found(-1.0, -1.0 - FLOAT_TOLERANCE * 2)
    assert found(1, True)
    assert found(0, None)
    assert found([1, 2], [2, 1])
    assert found([1], [1, 2])
    assert found({"a": None}, {})


def test_fields_of_a_body_are_named_without_values_or_indices() -> None:
    paths = field_paths(BODY)
    assert ".choices[].logprobs.content[].logprob" in paths
    assert not any(".id" in path or "spec_" in path for path in paths)


def test_lists_of_another_length_than_the_answer_are_named() -> None:
    def answer(count: int, reasoning: int, rows: int) -> dict[str, Any]:
        meta = {"completion_tokens": count, "reasoning_tokens": reasoning, "output_token_logprobs": [0] * rows}
        return {"output_ids": [1, 2], "meta_info": meta}

    assert inconsistencies(answer(2, 0, 2)) == []
    assert len(inconsistencies([answer(2, 0, 2), answer(3, 0, 2)])) == 2
    assert inconsistencies(answer(2, 0, 1)) == ["output_token_logprobs has 1 entries, completion_tokens is 2"]
    assert inconsistencies(answer(2, 3, 2)) == ["reasoning_tokens 3 is above completion_tokens 2"]


def test_forbidden_tokens_are_not_told_apart_and_their_ranks_are() -> None:
    lowest = -3.4028234663852886e38

    def body(token: int, rank: float = lowest) -> dict[str, Any]:
        return {
            "output_top_logprobs": [[[0.0, 7, None], [rank, token, None]]],
            "output_top_logprobs_val_flat": [0.0, rank],
            "output_top_logprobs_idx_flat": [7, token],
            "choices": [{"top_logprobs": [{"token": str(token), "logprob": rank}]}],
        }

    def found(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return bool(list(Comparison().differences(without_forbidden(one), without_forbidden(other))))

    assert not found(body(1), body(2))
    assert found(body(1, -3.0), body(2, -3.0))
    assert found(body(1, -3.0), body(1))


class TestStreamsAreAskedAgainUntilNothingIsJoined:
    """A server is a list of the streams that it gives, one for each time it is asked; the last is given for ever."""

    WHOLE: ClassVar = [{"tokens": 1}, {"tokens": 2}, {"tokens": 3}]

    def alike(self, monkeypatch: pytest.MonkeyPatch, plain: list[Any], ddtree: list[Any]) -> tuple[list[Any], ...]:
        def events_of(server: list[Any], case: object) -> Any:
            return server.pop(0) if len(server) > 1 else server[0]

        monkeypatch.setattr(stream_cases, "events_of", events_of)
        return stream_cases.alike(cast(Any, plain), cast(Any, ddtree), stream_cases.CASES[0])

    @pytest.mark.parametrize(
        ("plain", "ddtree"),
        [
            ([WHOLE[1:]], [WHOLE[:1] + WHOLE[2:]]),
            ([WHOLE], [WHOLE[1:]]),
            ([WHOLE[1:], WHOLE[1:]], [WHOLE, WHOLE]),
        ],
        ids=["both-elsewhere", "one", "one-twice"],
    )
    def test_joined_events_are_not_differences(
        self, monkeypatch: pytest.MonkeyPatch, plain: list[Any], ddtree: list[Any]
    ) -> None:
        expected, mine = self.alike(monkeypatch, [*plain, self.WHOLE], [*ddtree, self.WHOLE])
        assert expected == mine == self.WHOLE

    @pytest.mark.parametrize(
        "ddtree",
        [
            [[{"tokens": 1}, {"tokens": 2}, {"tokens": 2}], WHOLE],
            [[{"tokens": 1}, {"tokens": 2}, {"tokens": 3}, {"tokens": 3}], WHOLE],
            [WHOLE[1:]],
        ],
        ids=["another-event-once", "an-event-too-many-once", "an-event-too-few-always"],
    )
    def test_other_differences_stay(self, monkeypatch: pytest.MonkeyPatch, ddtree: list[Any]) -> None:
        expected, mine = self.alike(monkeypatch, [self.WHOLE], ddtree)
        assert stream_cases.differences(expected, mine)
