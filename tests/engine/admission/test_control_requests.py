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


def test_sglang_sets_thresholds_that_take_sampling_masks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal is for: a tree's answers stay exact, and requests for what they were drawn from are refused."""
    from sglang.srt.managers.io_struct import SetInternalStateReq
    from sglang.srt.managers.scheduler_components import internal_state
    from sglang.srt.speculative import spec_sampling_mask

    from ddtree_sglang.engine.algorithm import DDTreeSpecAlgo

    served = SimpleNamespace(**dict.fromkeys(THRESHOLDS, 1.0))
    context = SimpleNamespace(override=lambda source, **values: vars(served).update(values))
    monkeypatch.setattr(internal_state, "get_context", lambda: context)
    monkeypatch.setattr(spec_sampling_mask, "get_spec", lambda: served)
    algorithm = object.__new__(DDTreeSpecAlgo)
    request = SimpleNamespace(sampling_params=SimpleNamespace(min_p=0.0, top_k=1))
    assert spec_sampling_mask.validate_spec_sampling_mask_request(request, algorithm) is None
    controller = object.__new__(internal_state.SchedulerInternalStateController)
    controller.scheduler = SimpleNamespace(spec_algorithm=algorithm, metrics_reporter=SimpleNamespace())
    monkeypatch.setattr(controller, "_has_active_sampling_mask_request", lambda: False)
    monkeypatch.setattr(controller, "_average_accept_length", lambda: None)
    assert controller.set_internal_state(SetInternalStateReq(server_args={THRESHOLDS[0]: 0.5})).updated
    refused = spec_sampling_mask.validate_spec_sampling_mask_request(request, algorithm)
    assert refused is not None
    assert "acceptance thresholds of 1.0" in refused
