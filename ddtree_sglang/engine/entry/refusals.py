"""A request that is refused, is refused before it is sent to the scheduler, with a 400 whether it streams or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException

from ddtree_sglang.engine.admission.embedding_prompts import check_embeddings
from ddtree_sglang.engine.admission.logit_processors import check_processor
from ddtree_sglang.engine.admission.request_fields import (
    check_fields,
    check_labels,
    check_meetings,
    check_number_of_answers,
)
from ddtree_sglang.engine.admission.request_rules import refusal
from ddtree_sglang.engine.entry.bodies import as_http
from ddtree_sglang.engine.spec import serves_ddtree

_heard: ContextVar[list[str] | None] = ContextVar("refusals of the stream that begins", default=None)


class RequestRefused(ValueError):
    """A request that is not answered here. SGLang makes a ValueError of its tokenizer's process a 400."""


def check_request(original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `TokenizerManager._create_tokenized_object`, after which a request is sent.

    Raises:
        ValueError: the scheduler could not read it, would end over it, or could not answer it exactly.
    """
    with _told_to_the_stream(), clients_values():
        tokenized = original(manager, obj, *args, **kwargs)
        if hasattr(tokenized, "return_logprob"):  # a TokenizedGenerateReqInput
            refuse_unservable(tokenized, manager.model_config)
        return tokenized


def check_shape(original: Callable[..., None], obj: Any) -> None:
    """AROUND hook on `GenerateReqInput.normalize_batch_and_arguments`, which makes as many requests as are asked for.

    Raises:
        ValueError: too many, several where servers share requests out, the id of a probe, a label that is not counted,
            or a value of another kind.
    """
    with _told_to_the_stream(), clients_values():
        _refuse_id_of_a_probe(obj)
        first = obj.sampling_params[0] if isinstance(obj.sampling_params, list) else obj.sampling_params
        prompts = obj.input_ids if obj.text is None else obj.text
        is_batch = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
        num_answers = (first or {}).get("n", 1)
        reason = check_number_of_answers(num_answers, len(prompts) if is_batch else 1)
        reason = reason or check_meetings(num_answers) or check_labels(obj.custom_labels)
        if reason is not None:
            raise RequestRefused(reason)
        original(obj)


def _refuse_id_of_a_probe(obj: Any) -> None:
    """A scheduler that is busy drops SGLang's own probes, which it knows by their ids; a client would wait for ever."""
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

    ids = obj.rid if isinstance(obj.rid, list) else [obj.rid]
    is_probe = obj.log_metrics is False and obj.input_ids == [0]
    if not is_probe and any(isinstance(one, str) and one.startswith(HEALTH_CHECK_RID_PREFIX) for one in ids):
        raise RequestRefused(f"rid must not begin with {HEALTH_CHECK_RID_PREFIX}, got {obj.rid!r}; choose another.")


def check_reading(original: Callable[..., Any], reader: Any, *args: Any) -> Any:
    """AROUND hook on `GenerateReqInput.__getitem__` and `TokenizerManager._init_req_state`, which take a request apart.

    Raises:
        ValueError: lists of other lengths than its prompts', an id that is no string.
    """
    with _told_to_the_stream(), clients_values():
        return original(reader, *args)


async def check_text(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any) -> Any:
    """AROUND hook on `TokenizerManager._tokenize_one_request`: a prompt that no tokenizer takes is the client's."""
    if obj.contains_mm_input():
        return await original(manager, obj)
    with _told_to_the_stream(), clients_values():
        return await original(manager, obj)


@contextmanager
def clients_values() -> Iterator[None]:
    """What is raised in here, where no more is done than to read what a client sent, is a ValueError, thus a 400."""
    try:
        yield
    except (ValueError, HTTPException):
        raise
    except Exception as error:
        message = f"the request has a value that cannot be read: {type(error).__name__}: {error}."
        raise RequestRefused(message) from error


def refuse_unservable(request: Any, model_config: Any) -> None:
    """Raise `RequestRefused` for a tokenized request that ends a scheduler, or that DDTREE does not answer."""
    reason = check_fields(request, int(model_config.vocab_size))
    reason = reason or check_embeddings(request, int(model_config.hidden_size))
    if reason is None and serves_ddtree():
        reason = refusal(request)
    if not request.custom_logit_processor:
        # Beside requests that have one, stock makes a processor of "" and ends.
        request.custom_logit_processor = None
    # Last: nothing of a request that is refused is unpickled.
    reason = reason or check_processor(request.custom_logit_processor)
    if reason is not None:
        raise RequestRefused(reason)


def check_what_is_sent(original: Callable[..., None], manager: Any, obj: Any) -> None:
    """AROUND hook on `TokenizerManager._dispatch_to_scheduler`: send only what the scheduler can decode.

    With SGLANG_USE_PICKLE_IPC=0 a scheduler decodes by types (managers/io_struct.py), and a value of another type than
    its field's ends it.

    Raises:
        RequestRefused: names the field.
    """
    _refuse_unreadable(obj)
    _refuse_without_a_recorder(obj)
    original(manager, obj)


async def check_what_is_sent_later(original: Callable[..., Awaitable[None]], manager: Any, obj: Any) -> None:
    """AROUND hook on `TokenizerManager._async_dispatch_to_scheduler`, as `check_what_is_sent`."""
    _refuse_unreadable(obj)
    await original(manager, obj)


def _refuse_without_a_recorder(obj: Any) -> None:
    """Stock's scheduler raises where no recorder of experts was asked for."""
    from sglang.srt.managers.io_struct import ExpertDistributionReq
    from sglang.srt.runtime_context import get_exec

    if isinstance(obj, ExpertDistributionReq) and get_exec().moe.expert_distribution_recorder_mode is None:
        raise RequestRefused("no distribution of experts is recorded; start with --expert-distribution-recorder-mode.")


def _refuse_unreadable(obj: Any) -> None:
    from sglang.srt.environ import envs
    from sglang.srt.managers.io_struct import msgpack_encode
    from sglang.srt.managers.utils import msgpack_decode_explained

    if envs.SGLANG_USE_PICKLE_IPC.get():
        return
    with _told_to_the_stream():
        try:
            msgpack_decode_explained(msgpack_encode(obj))
        except Exception as error:
            raise RequestRefused(f"the request has a value of a kind that is not expected there: {error}.") from error


def check_before_events(
    original: Callable[..., Any], serving: Any, request_id: str, prompt: Any, adapted: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND hook on `OpenAIServingResponses._generate_with_builtin_tools`, whose callers make a ValueError a 400.

    A stream of `/v1/responses` says "response.created" before its request is tokenized, so it is looked at here.
    """
    if adapted.stream:
        manager = serving.tokenizer_manager
        sampling = manager.sampling_params_class(
            **{**(manager.preferred_sampling_params or {}), **adapted.sampling_params}
        )
        sampling.normalize(manager.tokenizer)
        sampling.verify(manager.model_config.vocab_size)
        reason = refusal(SimpleNamespace(**{**vars(adapted), "sampling_params": sampling}))
        if reason is not None and serves_ddtree():
            raise RequestRefused(reason)
    return original(serving, request_id, prompt, adapted, *args, **kwargs)


async def give_a_refused_stream_its_status(original: Callable[..., Any], response: Any, send: Any) -> None:
    """AROUND hook on `StreamingResponse.stream_response`: no status is sent before there is something to stream.

    Stock sends 200 first, and the refusal in an event after it, for all but the OpenAI endpoints.

    Raises:
        HTTPException: the request was refused; SGLang's handler answers with a 400 in its endpoint's form.
    """
    heard: list[str] = []
    token = _heard.set(heard)
    chunks = aiter(response.body_iterator)
    try:
        first = await anext(chunks, None)
    except HTTPException:
        raise
    except Exception as error:
        raise as_http(error) from error
    finally:
        _heard.reset(token)
    if heard:
        await _close(chunks)
        raise HTTPException(400, heard[0])
    if first is not None:
        response.body_iterator = _again(first, chunks)
    await original(response, send)


async def _again(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for chunk in rest:
        yield chunk


async def _close(chunks: Any) -> None:
    if hasattr(chunks, "aclose"):
        await chunks.aclose()


@contextmanager
def _told_to_the_stream() -> Iterator[None]:
    """A ValueError in here is noted for the response that waits for its first chunk, if one does."""
    try:
        yield
    except ValueError as error:
        heard = _heard.get()
        if heard is not None and str(error) not in heard:
            heard.append(str(error))
        raise
