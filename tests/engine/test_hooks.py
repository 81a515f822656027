"""Hooks that are no more than a function: what they pass through and what they change."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.hooks import (
    allow_adapters,
    carry_no_hidden_states,
    exit_on_bad_arguments,
    keep_model_dtype,
    leave_nothing_that_runs,
    refuse_what_came_another_way,
)
from ddtree_sglang.exceptions import EngineContractError


@pytest.mark.parametrize("is_draft_worker", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_input_embeddings_get_the_dtype_of_their_model(dtype: torch.dtype, is_draft_worker: bool) -> None:
    """Stock casts to bfloat16, and one request with `input_embeds` ended a float32 server."""
    runner = SimpleNamespace(dtype=dtype, is_draft_worker=is_draft_worker)
    batch = SimpleNamespace(input_embeds=torch.randn(2, 4))

    def original(runner: Any, batch: Any, proxy: Any) -> dict[str, Any]:
        return {"input_embeds": batch.input_embeds.bfloat16()}

    given = keep_model_dtype(original, runner, batch, None)["input_embeds"]
    assert given.dtype == dtype
    assert torch.equal(given, batch.input_embeds.to(dtype))


@pytest.mark.parametrize(
    ("algorithm", "stock", "expected"), [("DDTREE", True, False), ("EAGLE", True, True), ("DFLASH", False, False)]
)
def test_overlap_scheduling_carries_no_hidden_states_of_ours(
    algorithm: str, stock: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(speculative_algorithm=algorithm)
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: spec)
    assert carry_no_hidden_states(lambda: stock) is expected


@pytest.mark.parametrize(("algorithm", "asked"), [("DDTREE", []), ("ddtree", []), ("UNO", ["UNO"]), (None, [None])])
def test_sglangs_list_of_algorithms_with_adapters_is_read_for_others(algorithm: str | None, asked: list[Any]) -> None:
    seen: list[Any] = []
    arguments = SimpleNamespace(speculative_algorithm=algorithm)
    allow_adapters(lambda given: seen.append(given.speculative_algorithm), arguments)
    assert seen == asked


def test_a_batch_without_embeddings_is_left_alone() -> None:
    runner, batch = SimpleNamespace(dtype=torch.float32), SimpleNamespace(input_embeds=None)
    assert keep_model_dtype(lambda *_: {"other": 1}, runner, batch, None) == {"other": 1}


@pytest.mark.parametrize("refused", [True, False])
def test_on_a_refused_engine_resolution_begins_at_once_and_says_why(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What completes arguments asks names of the engine, and those may be what is missing."""
    from ddtree_sglang.engine import plugin
    from ddtree_sglang.engine.admission import attention_default, server_args

    reason = EngineContractError("another release")

    def original(_: Any) -> None:
        raise reason

    def complete(_: Any) -> None:
        raise ImportError("cannot import name 'get_platform'")

    monkeypatch.setattr(plugin, "_refusal", reason if refused else None)
    monkeypatch.setattr(attention_default, "complete_raw_arguments", complete)
    monkeypatch.setattr(server_args, "check_checkpoints", lambda _: None)
    with pytest.raises(EngineContractError if refused else ImportError):
        exit_on_bad_arguments(original, SimpleNamespace())


def test_what_came_another_way_is_answered_without_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.entry import refusals

    admitted: list[Any] = []
    answered: list[Any] = []
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=None))
    monkeypatch.setattr(refusals, "check_fields", lambda request, vocab: request.wrong)
    scheduler = scheduler_that_answers(answered)
    for wrong, images in ((None, None), ("ids", None), ("ids", object())):
        request = SimpleNamespace(
            rid=str(wrong),
            wrong=wrong,
            mm_inputs=images,
            custom_logit_processor=None,
            input_embeds=None,
            http_worker_ipc=None,
        )
        refuse_what_came_another_way(lambda scheduler, one, **_: admitted.append(one.wrong), scheduler, request)
    assert admitted == [None, "ids"]
    assert [(one.rid, one.finished_reason["status_code"].value) for one in answered] == [("ids", 400)]
    assert answered[0].finished_reason["message"] == "ids"


def scheduler_that_answers(answered: list[Any]) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=10, hidden_size=4),
        send_abort_output=lambda abort, request: answered.append(abort),
    )


@pytest.mark.parametrize(
    ("error", "is_answered"),
    [
        (KeyError("b"), True),
        (TypeError("unhashable"), True),
        (AssertionError("one"), True),
        (OSError("disk"), False),
        (MemoryError(), False),
        (RuntimeError("CUDA error"), False),
    ],
)
def test_what_follows_from_a_requests_values_is_its_own_and_trouble_of_the_machine_is_not(
    error: Exception, is_answered: bool
) -> None:
    answered: list[Any] = []

    def original(scheduler: Any, request: Any) -> None:
        raise error

    request = SimpleNamespace(rid="r", mm_inputs=object(), http_worker_ipc=None)
    with nullcontext() if is_answered else pytest.raises(type(error)):
        refuse_what_came_another_way(original, scheduler_that_answers(answered), request)
    assert [(one.rid, one.finished_reason["status_code"].value) for one in answered] == [("r", 500)] * is_answered
    assert all(f"{type(error).__name__}: {error}" in one.finished_reason["message"] for one in answered)


def test_a_refused_request_leaves_nothing_that_runs() -> None:
    """SGLang prefills it: with its processor, which it would unpickle, and a penalty's counts."""
    from array import array

    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    asked = SamplingParams(max_new_tokens=50, frequency_penalty=1.0, json_schema="{", logit_bias={"1": 1e9})
    asked.normalize(None)
    req = Req(
        "rid",
        "",
        array("q", [1, 2]),
        asked,
        custom_logit_processor="not a pickle",
        input_embeds=[[0.0], [0.0]],
        return_hidden_states=True,
    )
    assert req.return_hidden_states_mode.need_capture()
    leave_nothing_that_runs(None, req, "refused")
    neutral = SamplingParams(max_new_tokens=1, temperature=0.0)
    neutral.normalize(None)
    assert req.sampling_params == neutral
    assert req.custom_logit_processor is None
    assert req.input_embeds is None
    assert not req.return_hidden_states_mode.need_capture()
