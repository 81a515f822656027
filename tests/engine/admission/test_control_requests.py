"""A control request whose handler raises is answered in its own class; one that changes weights is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission.control_requests import (
    ANSWERS,
    THRESHOLDS,
    Guarded,
    answer_failures,
    failure,
)


@pytest.mark.parametrize("request_class", ANSWERS)
def test_each_failure_is_an_answer_of_the_class_that_is_waited_for(request_class: str) -> None:
    from sglang.srt.managers import io_struct

    answer = failure(request_class, "KeyError: 'a'")
    assert type(answer) is getattr(io_struct, ANSWERS[request_class])
    assert hasattr(io_struct, request_class)
    assert getattr(answer, "success", False) is False
    assert io_struct.msgpack_decode(io_struct.msgpack_encode(answer)) == answer


def raising(request: Any) -> Any:
    raise KeyError(request.rid)


def test_a_handler_that_raises_is_answered_and_others_answer_themselves() -> None:
    from sglang.srt.managers.io_struct import ProfileReq, UpdateWeightFromDiskReqInput

    scheduler = SimpleNamespace(_request_dispatcher=raising)
    answer_failures(None, scheduler)
    answer = scheduler._request_dispatcher(ProfileReq(rid="r"))
    assert (answer.success, answer.message) == (False, "KeyError: 'r'")
    with pytest.raises(KeyError):
        scheduler._request_dispatcher(UpdateWeightFromDiskReqInput(rid="r", model_path="m"))
    assert Guarded(lambda request: request)(3) == 3
    assert Guarded(raising).__name__ == "raising"


@pytest.mark.parametrize("algorithm", ["DDTREE", "DFLASH"])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_running_server_of_trees_keeps_its_thresholds(
    name: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers.io_struct import SetInternalStateReq, SetInternalStateReqOutput

    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    guarded = Guarded(lambda request: SetInternalStateReqOutput(updated=True))
    for value, is_set in ((0.5, algorithm == "DFLASH"), (1.0, True), (1, True)):
        assert guarded(SetInternalStateReq(server_args={name: value})).updated == is_set
    assert guarded(SetInternalStateReq(server_args={"pp_max_micro_batch_size": 8})).updated
