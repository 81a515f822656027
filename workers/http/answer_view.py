"""An answer in the shape that SGLang's `TokenizerManager` yields.

The OpenAI classes read `text` and `output_ids` as everything so far, and slice the lists in `meta_info` from where they
read last (sglang/srt/managers/tokenizer_manager.py, `_handle_batch_output`).
"""

from __future__ import annotations

import time
from typing import Any

from workers.answers.resume import ResumableAnswer
from workers.answers.text import AnswerText
from workers.http.openai_errors import FAILURES, Failure, abort_reason, status_of, unexpected_reason


class AnswerView:
    """Formats an answer; keeps of it only how much was shown, and an error that ended it from outside.

    Args:
        answer: what to show.
        text: the answer's own.
        show_prompt: with `prompt_token_ids`.
        weight_version: reported where a replica reports none.
    """

    def __init__(
        self, answer: ResumableAnswer, text: AnswerText, show_prompt: bool = False, weight_version: str = "default"
    ) -> None:
        self.answer = answer
        self._text = text
        self._show_prompt = show_prompt
        self._weight_version = weight_version
        self._started = time.perf_counter()
        self._shown_len = 0
        self._failure: dict[str, Any] | None = None

    @property
    def finish_reason(self) -> dict[str, Any] | None:
        """The error that ended it, or the answer's own, whose status the OpenAI classes want as an HTTPStatus."""
        if self._failure is not None or self.answer.finish_reason is None:
            return self._failure
        reason = dict(self.answer.finish_reason)
        if reason.get("type") == "abort" and isinstance(reason.get("status_code"), int):
            reason["status_code"] = status_of(reason["status_code"])
        return reason

    @property
    def has_news(self) -> bool:
        """Whether a stream should send what there is. Tokens whose text is held back wait for it: the chat handler
        drops the log-probabilities of a part without text."""
        return len(self._text.text) > self._shown_len or self.finish_reason is not None

    def fail(self, failure: Failure | Exception) -> None:
        """End with an error event."""
        self._failure = abort_reason(failure) if isinstance(failure, FAILURES) else unexpected_reason(failure)

    def as_dict(self) -> dict[str, Any]:
        """What there is so far. The lists in it are the answer's: the client may still read them as they grow."""
        text, reason = self._text.text, self.finish_reason
        self._shown_len = len(text)
        meta = {"weight_version": self._weight_version, **self.answer.meta(), "finish_reason": reason}
        if reason is not None:
            meta["e2e_latency"] = time.perf_counter() - self._started
        result = {"text": text, "output_ids": self.answer.token_ids, "meta_info": meta}
        if self._show_prompt:
            result["prompt_token_ids"] = list(self.answer.request.prompt_ids)
        return result
