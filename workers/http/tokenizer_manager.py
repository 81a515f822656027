"""Takes the place of SGLang's `TokenizerManager`, so that SGLang's own OpenAI classes run over replicas.

Templates, tool calls, reasoning, log-probabilities and usage stay SGLang's. This adapter has the members that those
classes use of a `TokenizerManager` for text models, and no engine: no scheduler, no sockets. SGLang is imported when an
adapter is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

from workers.answers.async_streams import gathered, merged, while_connected
from workers.answers.resume import ResumableAnswer
from workers.answers.retry import RetryingGenerator
from workers.http.answer_view import AnswerView
from workers.http.generate_input import split, token_request
from workers.http.model_tokenizer import ModelTokenizer
from workers.http.openai_errors import FAILURES, ServiceError, error_before_first_token

logger = logging.getLogger(__name__)

# How often a waiting request asks whether its client is still connected; SGLang's own interval.
DISCONNECT_POLL_S = 4.0


class TokenizerManagerAdapter:
    """The `TokenizerManager` of `OpenAIServingChat` and `OpenAIServingCompletion`, over a generator.

    Args:
        server_args: SGLang's, published in this process. Speculative settings belong to the replicas.
        generator: generates the answers.
        tokenizer: the model's; loaded as SGLang does it unless given.
    """

    def __init__(self, server_args: Any, generator: RetryingGenerator, tokenizer: Any = None) -> None:
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.runtime_context import assert_published

        assert_published(server_args, role="tokenizer")
        if self.config_value("incremental_streaming_output"):
            raise ValueError(
                "--incremental-streaming-output is not supported: answers stream the cumulative text; remove the flag."
            )
        self.server_args = server_args
        self.model_path: str = self.config_value("model_path")
        self.served_model_name: str = self.config_value("served_model_name")
        self.model_config = ModelConfig.from_server_args(server_args)
        self.processor = None  # of multimodal models; the templates ask for it
        self.request_logger = _request_logger(self.config_value)
        self._model = ModelTokenizer(self.config_value, self.model_config, tokenizer)
        self.tokenizer = self._model.tokenizer
        self._generator = generator
        self._running: set[str] = set()
        self._streams: WeakValueDictionary[int, AsyncGenerator[Any, None]] = WeakValueDictionary()

    def config_value(self, name: str) -> Any:
        """A published setting, by the name of its server argument."""
        from sglang.srt.runtime_context import get_context

        return get_context().config_leaf(name)

    def generate_request(self, obj: Any, request: Any = None) -> AsyncGenerator[Any, None]:
        """Answer a GenerateReqInput with dicts as `TokenizerManager` does: one at the end, or one per part of a stream.

        Raises (while iterating):
            ValueError: an engine would refuse the request, or its client went away.
            HTTPException: a failure before the first token; later failures of a stream are finish reasons.
        """
        stream = self._generate(obj, request)
        self._streams[id(obj)] = stream
        return stream

    def create_abort_task(self, obj: Any) -> Any:
        """A background task that runs after a response, however it ended, and stops replicas that still work for it."""
        from starlette.background import BackgroundTasks

        async def abort() -> None:
            stream = self._streams.get(id(obj))
            # RuntimeError: the stream is still being read, and its reader closes it.
            with suppress(RuntimeError):
                if stream is not None:
                    await stream.aclose()

        tasks = BackgroundTasks()
        tasks.add_task(abort)
        return tasks

    async def _generate(self, obj: Any, http_request: Any) -> AsyncGenerator[Any, None]:
        parts = split(obj)
        self.request_logger.log_received_request(obj, self.tokenizer, http_request)
        # In a thread: encoding a long prompt takes long, and every other stream would wait meanwhile.
        views = await asyncio.to_thread(lambda: [self._view(part) for part in parts])
        is_disconnected = None if http_request is None or obj.background else http_request.is_disconnected
        self._enter(views)
        try:
            if not obj.stream:
                waiting = gathered(self._whole(view) for view in views)
                results = await while_connected(waiting, is_disconnected, DISCONNECT_POLL_S)
                self.request_logger.log_finished_request(obj, results[0], request=http_request)
                yield results[0] if obj.is_single else results
                return
            async with aclosing(self._streamed(views, obj.is_single)) as stream:
                while True:
                    waiting_next = anext(stream, None)
                    result = await while_connected(waiting_next, is_disconnected, DISCONNECT_POLL_S)
                    if result is None:
                        return
                    yield result
        finally:
            self._running.difference_update(view.answer.request.request_id for view in views)

    def _view(self, part: Any) -> AnswerView:
        """An empty answer to one of the requests that were asked for."""
        request = token_request(part, self._model.prompt_rules)
        text = self._model.answer_text(request)
        token_texts = self._model.token_texts if part.return_text_in_logprobs else None
        answer = ResumableAnswer(request, self._model.limits, text, token_texts)
        return AnswerView(answer, text, bool(part.return_prompt_token_ids), self.config_value("weight_version"))

    def _enter(self, views: Sequence[AnswerView]) -> None:
        ids = [view.answer.request.request_id for view in views]
        again = self._running.intersection(ids)
        if again:
            raise ValueError(
                f"a request id may be in use only once at a time, got {min(again)!r} again; leave rid out."
            )
        self._running.update(ids)

    async def _whole(self, view: AnswerView) -> dict[str, Any]:
        """One answer as a whole. Nothing is sent before its end, so every failure can have a status."""
        try:
            async with aclosing(self._generator.generate(view.answer)) as parts:
                async for _ in parts:
                    pass
        except FAILURES as failure:
            raise error_before_first_token(failure) from failure
        _raise_engine_abort(view.finish_reason)
        return view.as_dict()

    async def _streamed(self, views: Sequence[AnswerView], is_single: bool) -> AsyncGenerator[dict[str, Any], None]:
        """All answers as they come. Once a part of any of them was sent, failures are finish reasons."""
        started = False

        async def one(index: int) -> AsyncGenerator[dict[str, Any], None]:
            nonlocal started
            view = views[index]
            try:
                async with aclosing(self._generator.generate(view.answer)) as parts:
                    async for _ in parts:
                        if view.has_news:
                            started = True
                            yield _indexed(view, index, is_single)
            except FAILURES as failure:
                if not started:
                    raise error_before_first_token(failure) from failure
                view.fail(failure)
                yield _indexed(view, index, is_single)
            except Exception as error:
                if not started:
                    raise
                # SGLang's handlers catch ValueError alone; any other exception would cut the stream without an error.
                logger.exception("answer %s ended with an unexpected error", view.answer.request.request_id)
                view.fail(error)
                yield _indexed(view, index, is_single)

        async with aclosing(merged([one(index) for index in range(len(views))])) as results:
            async for result in results:
                yield result


def _indexed(view: AnswerView, index: int, is_single: bool) -> dict[str, Any]:
    return view.as_dict() if is_single else {**view.as_dict(), "index": index}


def _raise_engine_abort(reason: dict[str, Any] | None) -> None:
    """Raise an engine's abort that has an error status, as `TokenizerManager._handle_abort_finish_reason` does."""
    if reason is None or reason.get("type") != "abort" or not isinstance(reason.get("status_code"), HTTPStatus):
        return
    message = str(reason.get("message", "Generation aborted."))
    if reason["status_code"] == HTTPStatus.BAD_REQUEST:
        raise ValueError(message)
    raise ServiceError(reason["status_code"], message, reason.get("err_type") or "abort")


def _request_logger(config_value: Any) -> Any:
    from sglang.srt.utils.request_logger import RequestLogger

    names = ("log_requests", "log_requests_level", "log_requests_format", "log_requests_target")
    return RequestLogger(**{name: config_value(name) for name in names})
