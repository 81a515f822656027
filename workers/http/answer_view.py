"""One answer in the shape that SGLang's `TokenizerManager` yields.

The OpenAI classes read `text` and `output_ids` as everything so far, and slice lists in `meta_info` from where they
read last: the lists are live and only grow (sglang/srt/managers/tokenizer_manager.py, `_handle_batch_output`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workers.answers.protocol import TokenRequest
from workers.answers.resume import Progress
from workers.answers.text import AnswerText
from workers.http.openai_errors import FAILURES, Failure, abort_reason, status_of, unexpected_reason

# The text of each token by itself.
TokenTexts = Callable[[list[int]], list[str]]


class AnswerView:
    """Collects an answer's progress.

    Args:
        request: what was asked for.
        text: grows with the answer; whoever feeds it must have done so before `take`.
        token_texts: for log-probabilities with text; None leaves None there.
        show_prompt: with `prompt_token_ids`.
        weight_version: reported where a replica does not.
    """

    def __init__(
        self,
        request: TokenRequest,
        text: AnswerText,
        token_texts: TokenTexts | None = None,
        show_prompt: bool = False,
        weight_version: str = "default",
    ) -> None:
        self._request = request
        self._text = text
        self._token_texts = token_texts
        self._show_prompt = show_prompt
        self._started = time.perf_counter()
        self._shown_len = 0
        self._output_ids: list[int] = []
        self._logprobs: list[Any] = []
        self._top_logprobs: list[Any] = []
        self._meta: dict[str, Any] = {
            "id": request.request_id,
            "finish_reason": None,
            "prompt_tokens": len(request.prompt_ids),
            "completion_tokens": 0,
            "cached_tokens": 0,
            "reasoning_tokens": 0,
            "weight_version": weight_version,
        }
        if request.return_logprob:
            self._meta |= {"output_token_logprobs": [], "output_token_logprobs_length": 0, "input_token_logprobs": []}

    @property
    def finish_reason(self) -> dict[str, Any] | None:
        reason: dict[str, Any] | None = self._meta["finish_reason"]
        return reason

    @property
    def has_news(self) -> bool:
        """Whether a stream should send what there is. Tokens whose text is held wait for it: the chat handler drops the
        log-probabilities of a part without text."""
        return len(self._text.text) > self._shown_len or self.finish_reason is not None

    def take(self, progress: Progress) -> None:
        self._output_ids.extend(progress.token_ids)
        self._meta |= progress.meta
        self._take_logprobs()
        if progress.finish_reason is not None:
            self._text.finish(progress.finish_reason)
            self._finish(dict(progress.finish_reason))

    def fail(self, failure: Failure | Exception) -> None:
        """End with an error event."""
        self._finish(abort_reason(failure) if isinstance(failure, FAILURES) else unexpected_reason(failure))

    def as_dict(self) -> dict[str, Any]:
        """What there is so far."""
        self._shown_len = len(self._text.text)
        # The client may still read this when the answer has gone on; its lists may grow, its entries may not change.
        result = {"text": self._text.text, "output_ids": self._output_ids, "meta_info": dict(self._meta)}
        if self._show_prompt:
            result["prompt_token_ids"] = list(self._request.prompt_ids)
        return result

    def _finish(self, reason: dict[str, Any]) -> None:
        if reason.get("type") == "abort" and isinstance(reason.get("status_code"), int):
            reason["status_code"] = status_of(reason["status_code"])
        self._meta["finish_reason"] = reason
        self._meta["e2e_latency"] = time.perf_counter() - self._started

    def _take_logprobs(self) -> None:
        """Give the new entries their tokens' text, as `detokenize_logprob_tokens` does."""
        if not self._request.return_logprob:
            return
        known = len(self._logprobs)
        self._logprobs.extend(self._with_texts(self._meta["output_token_logprobs"][known:]))
        self._meta["output_token_logprobs"] = self._logprobs
        self._meta["output_token_logprobs_length"] = len(self._logprobs)
        if self._request.top_logprobs_num > 0:
            new = self._meta["output_top_logprobs"][len(self._top_logprobs) :]
            self._top_logprobs.extend(self._with_texts(row) if row else None for row in new)
            self._meta["output_top_logprobs"] = self._top_logprobs

    def _with_texts(self, entries: list[Any]) -> list[Any]:
        if self._token_texts is None or not entries:
            return list(entries)
        texts = self._token_texts([entry[1] for entry in entries])
        return [(entry[0], entry[1], text) for entry, text in zip(entries, texts, strict=True)]
