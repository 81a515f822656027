"""A refusal is raised before a request is sent, and a stream that has said nothing yet gets its status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.responses import StreamingResponse

from ddtree_sglang.engine.entry import refusals
from ddtree_sglang.engine.entry.refusals import (
    check_before_events,
    check_request,
    check_shape,
    check_text,
    check_what_is_sent,
    give_a_refused_stream_its_status,
)

MANAGER = SimpleNamespace(model_config=SimpleNamespace(vocab_size=10, hidden_size=4))


@pytest.fixture(autouse=True)
def _refuses_everything_named_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "check_fields", lambda request, vocab: request.name if vocab == 10 else None)


def tokenized(name: str | None) -> Any:
    return SimpleNamespace(return_logprob=False, name=name, custom_logit_processor=None, input_embeds=None)


@pytest.mark.parametrize("algorithm", [None, "DDTREE"])
def test_a_request_that_would_end_the_scheduler_is_not_sent(
    algorithm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    monkeypatch.setattr(refusals, "refusal", lambda request: None)
    with pytest.raises(ValueError, match="bad"):
        check_request(lambda manager, obj: tokenized("bad"), MANAGER, object())
    assert check_request(lambda manager, obj: tokenized(None), MANAGER, object()).name is None


@pytest.mark.parametrize("empty", ["", False])
def test_an_empty_processor_is_none(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock makes one of it where another request of the batch has a processor."""
    monkeypatch.setattr(refusals, "serves_ddtree", lambda: False)
    request = tokenized(None)
    request.custom_logit_processor = empty
    refusals.refuse_unservable(request, MANAGER.model_config)
    assert request.custom_logit_processor is None


def test_only_ddtree_refuses_what_ddtree_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "refusal", lambda request: "not on a tree")
    for algorithm in ("DFLASH", "ddtree"):
        spec = SimpleNamespace(speculative_algorithm=algorithm)
        monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda spec=spec: spec)
        if algorithm == "DFLASH":
            check_request(lambda manager, obj: tokenized(None), MANAGER, object())
        else:
            with pytest.raises(ValueError, match="not on a tree"):
                check_request(lambda manager, obj: tokenized(None), MANAGER, object())


@pytest.mark.parametrize("error", [TypeError("an int"), KeyError("n"), OverflowError("too large")])
def test_a_value_that_the_tokenizers_process_cannot_read_is_the_clients(error: Exception) -> None:
    def original(manager: Any, obj: Any) -> Any:
        raise error

    with pytest.raises(ValueError, match=rf"cannot be read: {type(error).__name__}"):
        check_request(original, MANAGER, object())


def sent_by(generator: Callable[[], AsyncIterator[str]]) -> list[dict[str, Any]]:
    """What a streaming response sends, through the hook."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    response = StreamingResponse(generator())
    asyncio.run(give_a_refused_stream_its_status(StreamingResponse.stream_response, response, send))
    return sent


async def _events(refused_at: int | None) -> AsyncIterator[str]:
    """As SGLang's `/generate`: an error becomes an event."""
    for place in range(3):
        try:
            check_request(lambda manager, obj, at=place: tokenized("bad" if at == refused_at else None), MANAGER, 0)
        except ValueError as error:
            yield f"error {error}"
            return
        yield f"chunk {place}"


@pytest.fixture
def plain_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=None))


def test_a_stream_that_is_refused_sends_no_200(plain_server: None) -> None:
    with pytest.raises(HTTPException) as refused:
        sent_by(lambda: _events(0))
    assert (refused.value.status_code, refused.value.detail) == (400, "bad")


def test_a_stream_sends_all_of_its_chunks_in_order(plain_server: None) -> None:
    messages = sent_by(lambda: _events(None))
    assert messages[0]["status"] == 200
    assert [message["body"] for message in messages[1:]] == [b"chunk 0", b"chunk 1", b"chunk 2", b""]


def test_what_goes_wrong_later_stays_an_event(plain_server: None) -> None:
    messages = sent_by(lambda: _events(1))
    assert [message["body"] for message in messages[1:]] == [b"chunk 0", b"error bad", b""]


def test_an_empty_stream_is_an_empty_answer() -> None:
    async def nothing() -> AsyncIterator[str]:
        for never in ():
            yield never

    assert [message.get("body") for message in sent_by(nothing)] == [None, b""]


class _Sampling:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def normalize(self, tokenizer: Any) -> None: ...

    def verify(self, vocab_size: int) -> None: ...


@pytest.mark.parametrize(("stream", "is_refused"), [(True, True), (False, False)])
def test_a_response_is_looked_at_before_its_first_event(
    stream: bool, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that does not stream is tokenized before anything is sent."""
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm="DDTREE"))
    seen: list[Any] = []
    monkeypatch.setattr(refusals, "refusal", lambda request: seen.append(request) or "no regex")
    manager = SimpleNamespace(
        **vars(MANAGER), preferred_sampling_params={"top_k": 1, "n": 2}, sampling_params_class=_Sampling, tokenizer=None
    )
    adapted = SimpleNamespace(stream=stream, sampling_params={"n": 1}, custom_logit_processor="p")
    serving = SimpleNamespace(tokenizer_manager=manager)

    def ask() -> Any:
        return check_before_events(lambda *args, **kwargs: args, serving, "id", "prompt", adapted, {}, priority=1)

    if is_refused:
        with pytest.raises(ValueError, match="no regex"):
            ask()
        assert seen[0].sampling_params.values == {"top_k": 1, "n": 1}
        assert seen[0].custom_logit_processor == "p"
    else:
        assert ask() == (serving, "id", "prompt", adapted, {})


@pytest.mark.parametrize("value", [1.5, "7", 2**70, None])
def test_what_the_scheduler_cannot_decode_is_not_sent(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is sent ends the scheduler's loop, which decodes by types."""
    monkeypatch.setenv("SGLANG_USE_PICKLE_IPC", "0")
    from sglang.srt.managers.io_struct import AbortReq, OpenSessionReqInput

    sent: list[Any] = []
    fine = OpenSessionReqInput(capacity_of_str_len=7)
    check_what_is_sent(lambda manager, obj: sent.append(obj), MANAGER, fine)
    check_what_is_sent(lambda manager, obj: sent.append(obj), MANAGER, AbortReq(rid="a"))
    with pytest.raises(ValueError, match="not expected there"):
        check_what_is_sent(
            lambda manager, obj: sent.append(obj), MANAGER, OpenSessionReqInput(capacity_of_str_len=value)
        )
    assert sent[0] is fine
    assert len(sent) == 2


def asked_for(**fields: Any) -> Any:
    base = {"rid": None, "log_metrics": True, "custom_labels": None, "text": None, "sampling_params": None}
    return SimpleNamespace(**{**base, **fields})


@pytest.mark.parametrize("enable_metrics", [False, True])
@pytest.mark.parametrize(
    ("labels", "allowed", "named"),
    [
        (None, None, ""),
        ({}, None, ""),
        ({"team": "a"}, ["team", "job"], ""),
        ({"team": "a"}, None, r"\(none\), got 'team'"),
        ({"team": "a", "x": "y"}, ["team", "job"], r"\(team, job\), got 'x'"),
    ],
)
def test_a_label_that_is_not_counted_is_refused(
    labels: Any, allowed: Any, named: str, enable_metrics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting it when the answer comes ends the process that tokenizes."""
    served = SimpleNamespace(enable_metrics=enable_metrics, tokenizer_metrics_allowed_custom_labels=allowed)
    monkeypatch.setattr("sglang.srt.runtime_context.get_observability", lambda: served)
    taken_apart: list[Any] = []
    is_refused = bool(named) and enable_metrics
    with pytest.raises(ValueError, match=named) if is_refused else nullcontext():
        check_shape(taken_apart.append, asked_for(input_ids=[1], custom_labels=labels))
    assert len(taken_apart) == (not is_refused)


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"rid": "HEALTH_CHECK", "input_ids": [1]}, True),
        ({"rid": "HEALTH_CHECK_7", "input_ids": [0]}, True),
        ({"rid": ["a", "HEALTH_CHECK_7"], "input_ids": [[0], [0]]}, True),
        ({"rid": "HEALTH_CHECK_7", "input_ids": [0], "log_metrics": False}, False),
        ({"rid": "A_HEALTH_CHECK", "input_ids": [1]}, False),
        ({"rid": ["a", 5], "input_ids": [[0], [0]]}, False),
    ],
)
def test_a_client_has_no_id_of_a_probe(fields: dict[str, Any], is_refused: bool) -> None:
    """A busy scheduler drops it, and its client hears nothing."""
    taken_apart: list[Any] = []
    with pytest.raises(ValueError, match="must not begin with HEALTH_CHECK") if is_refused else nullcontext():
        check_shape(taken_apart.append, asked_for(**fields))
    assert len(taken_apart) == (not is_refused)


@pytest.mark.parametrize(("rid", "num_handled"), [("HEALTH_CHECK_7", 0), ("A_HEALTH_CHECK", 1)])
def test_a_busy_scheduler_drops_what_has_the_id_of_a_probe(
    rid: str, num_handled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's own loop over requests, which nobody answers then."""
    from sglang.srt.managers import scheduler as module

    handled: list[Any] = []
    busy = SimpleNamespace(
        scheduler_stage_metrics=None,
        session_controller=SimpleNamespace(maybe_reap=lambda now: None),
        _tokenized_requests=lambda request: [],
        is_fully_idle=lambda for_health_check: False,
        return_health_check_ipcs=[],
        _request_dispatcher=handled.append,
        flush_wrapper=SimpleNamespace(check_pending=lambda: None),
        external_corpus_manager=None,
    )
    monkeypatch.setattr(module, "get_mm", lambda: SimpleNamespace(mm_feature_transport="default"))
    monkeypatch.setattr(module, "get_disagg", lambda: SimpleNamespace(enable_pd_role_switch=False))
    module.Scheduler.process_input_requests(busy, [SimpleNamespace(rid=rid)])
    assert len(handled) == num_handled


@pytest.mark.parametrize(
    ("sampling", "prompts", "named"),
    [
        ({"n": 10**9}, "a", "at most"),
        ([{"n": "2"}], ["a", "b"], "whole number"),
        ([], ["a"], "cannot be read: IndexError"),
        ([5], ["a"], "cannot be read: AttributeError"),
    ],
)
def test_a_request_is_counted_before_it_is_taken_apart(sampling: Any, prompts: Any, named: str) -> None:
    taken_apart: list[Any] = []
    with pytest.raises(ValueError, match=named):
        check_shape(taken_apart.append, asked_for(sampling_params=sampling, text=prompts, input_ids=None))
    assert taken_apart == []


@pytest.mark.parametrize("sampling", [None, {}, {"n": 2}, [{}, {}]])
def test_what_is_not_too_much_is_taken_apart(sampling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_disagg(monkeypatch, "null")
    taken_apart: list[Any] = []
    asked = asked_for(sampling_params=sampling, text=None, input_ids=[1, 2])
    check_shape(taken_apart.append, asked)
    assert taken_apart == [asked]


@pytest.mark.parametrize("sampling", [{"n": 2}, [{"n": 2}, {"n": 2}]])
def test_a_server_that_decodes_alone_gives_one_answer_to_a_prompt(
    sampling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_disagg(monkeypatch, "decode")
    taken_apart: list[Any] = []
    with pytest.raises(ValueError, match="n must be 1 with --disaggregation-mode decode"):
        check_shape(taken_apart.append, asked_for(sampling_params=sampling, text=None, input_ids=[1, 2]))
    assert taken_apart == []


def publish_disagg(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    import sglang.srt.runtime_context as context

    disagg = SimpleNamespace(disaggregation_mode=mode, disaggregation_transfer_backend="mooncake")
    monkeypatch.setattr(context, "get_disagg", lambda: disagg)


@pytest.mark.parametrize("has_image", [False, True])
def test_a_prompt_that_no_tokenizer_takes_is_the_clients_unless_it_has_images(has_image: bool) -> None:
    """Those are fetched, which may fail for reasons of the server's own."""

    async def original(manager: Any, obj: Any) -> Any:
        raise TypeError("a lone surrogate")

    asked = SimpleNamespace(contains_mm_input=lambda: has_image)
    with pytest.raises(TypeError if has_image else ValueError, match="a lone surrogate"):
        asyncio.run(check_text(original, MANAGER, asked))
