"""One answer across several attempts: its tokens, log-probabilities, text and counters, and when it is complete.

Pure logic: no clock and no network. `RetryingGenerator` feeds it the chunks of one attempt after the other. Callers
rely on two invariants: every index of the answer is emitted exactly once and in order, and an answer ends at the first
token that ends it, wherever that token stood in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.answers.eligibility import why_not_resumable
from workers.answers.meta import AttemptReport, merge_reports
from workers.answers.protocol import Attempt, FinishReason, NotResumable, TokenChunk, TokenRequest, WorkerLost
from workers.answers.text import AnswerText, stop_token_ids

# Token ids -> the text of each by itself.
TokenTexts = Callable[[list[int]], list[str]]

# SamplingParams.max_new_tokens (sglang/srt/sampling/sampling_params.py) where the request does not name it. None in its
# place means "as long as the context allows".
DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class EngineLimits:
    """Where the engine ends an answer, whatever the request says.

    Attributes:
        eos_token_ids: the model's end tokens.
        max_total_len: most tokens of prompt and answer together; None where unknown.
        max_input_len: most tokens of a prompt, a few less than `max_total_len`; None where unknown.
    """

    eos_token_ids: frozenset[int] = frozenset()
    max_total_len: int | None = None
    max_input_len: int | None = None


@dataclass(frozen=True)
class Progress:
    """What one chunk added to an answer; the answer itself has the rest."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


class ResumableAnswer:
    """The state of one answer, and the only place where it is kept.

    `token_ids`, `logprobs` and `top_logprobs` are live: they grow with the answer, and an entry never changes.

    Args:
        request: what the client asked for.
        limits: where the engine would end it.
        text: grows with the tokens and looks for stop strings; None for an answer of tokens alone.
        token_texts: puts each token's text into its log-probabilities (SGLang's `detokenize_logprob_tokens`); None
            leaves None there.
    """

    def __init__(
        self,
        request: TokenRequest,
        limits: EngineLimits | None = None,
        text: AnswerText | None = None,
        token_texts: TokenTexts | None = None,
    ) -> None:
        self.request = request
        self._limits = limits or EngineLimits()
        self._text = text
        self._token_texts = token_texts
        self._stop_token_ids = stop_token_ids(request.sampling, self._limits.eos_token_ids)
        self._max_new_tokens: int | None = request.sampling.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        self._reports: list[AttemptReport] = []
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.top_logprobs: list[Any] = []
        self.finish_reason: FinishReason | None = None
        # Why the last token ends the answer, while the engine's closing chunk is still to come.
        self._ending: FinishReason | None = self._length() if self._max_new_tokens == 0 else None

    @property
    def num_emitted(self) -> int:
        return len(self.token_ids)

    def require_resumable(self) -> None:
        """Check, after a loss, that another replica may go on.

        Raises:
            NotResumable: tokens were sent, and the request depends on more than its tokens, or prompt and answer are
                longer than the longest prompt of an engine.
        """
        if not self.token_ids:
            return
        total_len, limit = len(self.request.prompt_ids) + self.num_emitted, self._limits.max_input_len
        if limit is not None and total_len > limit:
            # With --allow-auto-truncate an engine would cut the last tokens off and generate them again.
            raise NotResumable(
                f"an answer can go on at another replica only if prompt and answer fit a prompt of {limit} tokens, got "
                f"{total_len}: it was a few tokens before the end of the context; ask for fewer tokens."
            )
        reason = why_not_resumable(self.request)
        if reason is not None:
            raise NotResumable(
                f"an answer can go on at another replica only from its tokens, but this request sets {reason}; leave "
                "that out, or retry the whole request."
            )

    def next_attempt(self) -> Attempt:
        """The next attempt to run; chunks of earlier attempts are dropped from now on.

        Raises:
            NotResumable: see `require_resumable`.
        """
        self.require_resumable()
        self._reports.append(AttemptReport())
        return Attempt(
            request_id=self.request.request_id,
            number=len(self._reports) - 1,
            input_ids=(*self.request.prompt_ids, *self.token_ids),
            num_emitted=self.num_emitted,
            sampling=self._remaining_sampling(),
            return_logprob=self.request.return_logprob,
            top_logprobs_num=self.request.top_logprobs_num,
            extra=self.request.extra,
        )

    def accept(self, chunk: TokenChunk) -> Progress | None:
        """Add a chunk; None if it brings nothing new.

        Raises:
            WorkerLost: tokens are missing, or differ from those that were sent before. The attempt counts as lost, so
                that the client gets none of the damage.
        """
        current = len(self._reports) - 1
        if chunk.attempt < current or self.finish_reason is not None:
            return None
        if chunk.attempt > current:
            raise WorkerLost(f"chunks must be of attempt {current}, got one of attempt {chunk.attempt}.")
        start = self.num_emitted
        num_known = self._check_indices(chunk)
        self._reports[-1].meta |= chunk.meta
        num_unread = self._take(chunk, num_known)
        self._settle(chunk, num_unread)
        if start == self.num_emitted and self.finish_reason is None:
            return None
        return Progress(tuple(self.token_ids[start:]), self.finish_reason)

    def complete_without_worker(self) -> Progress | None:
        """The last progress if all tokens came and only the replica's closing chunk is missing, else None."""
        total_len, limit = len(self.request.prompt_ids) + self.num_emitted, self._limits.max_total_len
        if self._ending is None and self.token_ids and limit is not None and total_len >= limit:
            self._ending = self._length()
        if self._ending is None or self.finish_reason is not None:
            return None
        self._finish(self._ending)
        return Progress((), self.finish_reason)

    def meta(self) -> dict[str, Any]:
        """SGLang's `meta_info` of the whole answer so far, apart from what the HTTP side knows (latency, weights)."""
        meta = {"cached_tokens": 0, "reasoning_tokens": 0, **merge_reports(self._reports)}
        num_prompt = len(self.request.prompt_ids)
        meta |= {
            "id": self.request.request_id,
            "finish_reason": self.finish_reason,
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_emitted,
            # The first attempt to report may have had part of the answer in its prompt.
            "cached_tokens": min(meta["cached_tokens"], num_prompt),
        }
        if self.request.return_logprob:
            meta.setdefault("input_token_logprobs", [])
            meta |= {"output_token_logprobs": self.logprobs, "output_token_logprobs_length": len(self.logprobs)}
            if self.request.top_logprobs_num > 0:
                meta.setdefault("input_top_logprobs", [])
                meta["output_top_logprobs"] = self.top_logprobs
        return meta

    def _remaining_sampling(self) -> dict[str, Any]:
        """The request's parameters for the rest. A seed needs no change: SGLang draws by seed and position."""
        sampling = dict(self.request.sampling)
        limit = self._max_new_tokens
        sampling["max_new_tokens"] = None if limit is None else max(0, limit - self.num_emitted)
        if sampling.get("min_new_tokens"):
            sampling["min_new_tokens"] = max(0, sampling["min_new_tokens"] - self.num_emitted)
        return sampling

    def _check_indices(self, chunk: TokenChunk) -> int:
        """Number of the chunk's tokens that were emitted before.

        Raises:
            WorkerLost: a gap, other tokens than before, or missing log-probabilities.
        """
        num_known = self.num_emitted - chunk.first
        if num_known < 0:
            raise WorkerLost(f"tokens must follow without a gap: expected {self.num_emitted}, got {chunk.first}.")
        again = chunk.token_ids[:num_known]
        if chunk.first < 0 or list(again) != self.token_ids[chunk.first : chunk.first + len(again)]:
            raise WorkerLost(f"tokens sent twice must be the same, got others from index {chunk.first} on.")
        for name, values, asked in (
            ("logprobs", chunk.logprobs, self.request.return_logprob),
            ("top_logprobs", chunk.top_logprobs, self.request.top_logprobs_num > 0),
        ):
            if asked and self.request.return_logprob and len(values) < len(chunk.token_ids):
                raise WorkerLost(f"{name} must come with every token, got {len(values)} for {len(chunk.token_ids)}.")
        return num_known

    def _take(self, chunk: TokenChunk, num_known: int) -> int:
        """Emit the new tokens up to the one that ends the answer; returns the number of tokens after that one."""
        end = num_known = min(num_known, len(chunk.token_ids))
        while end < len(chunk.token_ids) and self._ending is None:
            self._emit(chunk.token_ids[end])
            end += 1
        self.logprobs.extend(self._with_texts(chunk.logprobs[num_known:end]))
        self.top_logprobs.extend(self._with_texts(row) if row else None for row in chunk.top_logprobs[num_known:end])
        return len(chunk.token_ids) - end

    def _with_texts(self, entries: Sequence[Any]) -> Sequence[Any]:
        if self._token_texts is None or not entries:
            return entries
        texts = self._token_texts([entry[1] for entry in entries])
        return [(entry[0], entry[1], text) for entry, text in zip(entries, texts, strict=True)]

    def _emit(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self._reports[-1].num_tokens += 1
        # The order of Req.update_finish_state (sglang/srt/managers/schedule_batch.py): string, token, length.
        matched = self._text.push(token_id) if self._text is not None else None
        if matched is not None:
            self._ending = matched
        elif token_id in self._stop_token_ids:
            self._ending = {"type": "stop", "matched": token_id}
        elif self._max_new_tokens is not None and self.num_emitted >= self._max_new_tokens:
            self._ending = self._length()

    def _settle(self, chunk: TokenChunk, num_unread: int) -> None:
        """Finish the answer if it has ended and the engine has nothing more to say about it."""
        theirs, ours = chunk.finish_reason, self._ending
        if ours is None:
            if theirs is not None:
                # The engine counts the length of its own part only.
                self._finish(theirs if theirs.get("type") != "length" else self._length())
        elif theirs is None and num_unread == 0 and not isinstance(ours.get("matched"), str):
            # The engine ends at this token too, and its closing chunk carries the counters.
            return
        elif ours["type"] == "length" and theirs is not None and theirs.get("type") == "stop" and num_unread == 0:
            self._finish(theirs)
        else:
            self._finish(ours)

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self._text is not None:
            self._text.finish(reason)

    def _length(self) -> FinishReason:
        return {"type": "length", "length": self.num_emitted}
