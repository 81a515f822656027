"""What ends the requests of a batch: as plain decoding judges tokens, and made once for as long as they stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.round_ends import check_ends
from ddtree_sglang.engine.stages.round_ends import BatchEnds, EndsOfBatches, end_token_ids, limit_len
from tests.engine.requests import request_of

pytestmark = pytest.mark.sglang


def tokenizer_of(eos: int | None, more: set[int] | None = None) -> Any:
    return SimpleNamespace(eos_token_id=eos, additional_stop_token_ids=more)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({"eos_token_ids": (2,)}, [2]),
        ({"eos_token_ids": (), "stop_token_ids": (9, 7)}, [7, 9]),
        ({"eos_token_ids": (2, 4), "stop_token_ids": (4,), "tokenizer": tokenizer_of(3)}, [2, 3, 4]),
        ({"eos_token_ids": (), "tokenizer": tokenizer_of(None, {8, 5})}, [5, 8]),
        ({"eos_token_ids": (2,), "stop_token_ids": (2**63, -1, 7, 5.0, 4.5, "a", True, float("inf"))}, [1, 2, 5, 7]),
        ({"eos_token_ids": (2,), "stop_token_ids": (7,), "ignore_eos": True, "tokenizer": tokenizer_of(3)}, []),
    ],
)
def test_tokens_that_end_a_request_are_those_that_end_it_in_plain_decoding(
    given: dict[str, Any], ids: list[int]
) -> None:
    assert end_token_ids(request_of(**given)) == ids


def test_sglang_ends_a_request_at_those_tokens_and_at_no_other() -> None:
    """Its own judgement of one token, for every token."""
    from sglang.srt.managers.schedule_batch import Req

    for ignore_eos in (False, True):
        req = request_of(
            stop_token_ids=(7, 9), eos_token_ids=(2,), tokenizer=tokenizer_of(3, {5}), ignore_eos=ignore_eos
        )
        req.output_ids.append(0)
        ended = [token for token in range(20) if Req._check_token_based_finish(req, [token])]
        assert ended == end_token_ids(req)


def test_a_processor_that_writes_into_its_requests_budget_ends_nothing() -> None:
    req = request_of(eos_token_ids=(2,), custom_params={"ddtree": {"budget": 2}})
    assert BatchEnds.of([req], 8, "cpu").most_nodes == 3
    req.sampling_params.custom_params["ddtree"] = "x"
    assert BatchEnds.of([req], 8, "cpu").most_nodes == 8


def test_a_batch_adapts_unless_all_of_its_requests_want_their_budget_as_it_is() -> None:
    fixed, free = ({"ddtree": {"budget": 2, "adapt": adapt}} for adapt in (False, True))
    reqs = {name: request_of(custom_params=given) for name, given in {"fixed": fixed, "free": free, "no": None}.items()}
    assert not BatchEnds.of([reqs["fixed"], reqs["fixed"]], 8, "cpu").adapts
    assert BatchEnds.of([reqs["fixed"], reqs["no"]], 8, "cpu").adapts
    assert BatchEnds.of([reqs["free"]], 8, "cpu").adapts
    reqs["fixed"].sampling_params.custom_params["ddtree"] = {"budget": "x", "adapt": False}
    assert BatchEnds.of([reqs["fixed"]], 8, "cpu").adapts, "options that are none ask for nothing"


def test_the_limit_is_the_length_that_is_committed_when_the_last_token_is_out() -> None:
    """The last token of an answer is in no KV row: a prompt of 4 and 3 tokens commit 6."""
    assert limit_len(request_of(prompt_len=4, max_new_tokens=3)) == 6


def test_a_batch_has_its_ends_side_by_side() -> None:
    reqs = [
        request_of(4, 3, eos_token_ids=(2, 11)),
        request_of(9, 1, eos_token_ids=(), custom_params={"ddtree": {"budget": 0}}),
        request_of(1, 50, eos_token_ids=(8,), custom_params={"ddtree": {"budget": 5}, "thinking_budget": 3}),
        request_of(1, 50, eos_token_ids=(8,), custom_params={"ddtree": {"budget": 500}}),
    ]
    made = BatchEnds.of(reqs, 17, "cpu")
    check_ends(made.ends, 4, torch.device("cpu"))
    assert made.ends.end_ids.tolist() == [[2, 11], [-1, -1], [8, -1], [8, -1]]
    assert made.ends.limit_lens.tolist() == [6, 9, 50, 50]
    assert made.ends.node_limits.tolist() == [17, 1, 6, 17]
    assert made.most_nodes == 17
    assert BatchEnds.of(reqs[1:3], 17, "cpu").most_nodes == 6


@pytest.mark.parametrize("reqs", [[], [request_of(eos_token_ids=())]])
def test_batches_without_requests_or_end_tokens_have_ends_too(reqs: list[Any]) -> None:
    made = BatchEnds.of(reqs, 17, "cpu")
    check_ends(made.ends, len(reqs), torch.device("cpu"))
    assert made.ends.end_ids.shape == (len(reqs), 0)


def test_ends_are_made_anew_when_requests_change_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = BatchEnds.of
    monkeypatch.setattr(BatchEnds, "of", lambda *args: made.append(1) or original(*args))
    one, two, three = (request_of(prompt_len=length) for length in (1, 2, 3))
    ends = EndsOfBatches(17, "cpu")
    batches = [[one, two], [one, two], [two, one], [two], [two], [two, three], [one, three], [one, three]]
    for reqs in batches:
        assert ends.of(reqs).ends.limit_lens.tolist() == [limit_len(req) for req in reqs]
    assert len(made) == 5


def test_a_new_request_in_the_place_of_an_ended_one_is_told_apart() -> None:
    """By identity, not by the id that a client gave, and not by an address that is used again."""
    ends = EndsOfBatches(17, "cpu")
    for length in range(50):
        req = request_of(prompt_len=length)
        assert ends.of([req]).ends.limit_lens.tolist() == [limit_len(req)]
        del req
