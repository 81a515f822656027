"""One answer across several attempts: what is emitted so far, what to ask for next, and when it is complete.

Pure logic: no clock, no network, no text. `router` feeds it the chunks of one attempt after the other. Callers rely on
two invariants: every index of the answer is emitted exactly once and in order, and an answer ends at the first token
that ends it, wherever that token stood in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.answers.eligibility import why_not_resumable
from workers.answers.meta import AttemptReport, merge_reports
from workers.answers.protocol import Attempt, NotResumable, TokenChunk, TokenRequest, WorkerLost

FinishReason = Mapping[str, Any]
# Sees every emitted token once, in order, and says whether the answer ends with it (a stop string is complete).
TokenWatch = Callable[[int], FinishReason | None]

# SamplingParams.max_new_tokens (sglang/srt/sampling/sampling_params.py) where the request does not name it; None is
# another thing, "as long as the context allows".
DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class EngineLimits:
    """What the engine ends an answer at, beside what the request says.

    Attributes:
        eos_token_ids: the model's end tokens.
        max_total_len: most tokens of prompt and answer together; None where unknown.
        max_input_len: longest prompt that it takes, a few tokens less than that; None where unknown.
    """

    eos_token_ids: frozenset[int] = frozenset()
    max_total_len: int | None = None
    max_input_len: int | None = None


@dataclass(frozen=True)
class Progress:
    """The answer grew, or ended."""

    token_ids: tuple[int, ...]  # new ones
    num_emitted: int  # with them
    finish_reason: FinishReason | None
    # SGLang's meta_info for the whole answer so far. Lists per token in it are live: they grow with the answer.
    meta: Mapping[str, Any] = field(default_factory=dict)


def stop_token_ids(sampling: Mapping[str, Any], eos_token_ids: frozenset[int]) -> frozenset[int]:
    """Tokens that end an answer; `ignore_eos` switches off the request's own too (Req._check_token_based_finish)."""
    if sampling.get("ignore_eos"):
        return frozenset()
    return eos_token_ids | frozenset(sampling.get("stop_token_ids") or ())


class ResumableAnswer:
    """The state of one answer.

    Args:
        request: what the client asked for.
        limits: where the engine would end it.
        watch: sees every emitted token; may end the answer.
    """

    def __init__(
        self, request: TokenRequest, limits: EngineLimits | None = None, watch: TokenWatch | None = None
    ) -> None:
        self._request = request
        self._limits = limits or EngineLimits()
        self._watch = watch
        self._stop_token_ids = stop_token_ids(request.sampling, self._limits.eos_token_ids)
        self._max_new_tokens: int | None = request.sampling.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        self._reports: list[AttemptReport] = []
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.top_logprobs: list[Any] = []
        self.finish_reason: FinishReason | None = None
        # Ended by its last token, while the engine's word for it is still to come.
        self._ending: FinishReason | None = self._length() if self._max_new_tokens == 0 else None

    @property
    def num_emitted(self) -> int:
        return len(self.token_ids)

    def require_resumable(self) -> None:
        """Call after a loss: may another replica go on?

        Raises:
            NotResumable: tokens are out, and the request depends on more than its tokens, or no engine takes so many.
        """
        if not self.token_ids:
            return
        total_len, limit = len(self._request.prompt_ids) + self.num_emitted, self._limits.max_input_len
        if limit is not None and total_len > limit:
            # An engine that truncates would drop the last tokens and make them again.
            raise NotResumable(
                f"an answer goes on at another worker only where that takes prompt and answer as its prompt, which may "
                f"have {limit} tokens, and these are {total_len}: a few tokens before the context's end."
            )
        reason = why_not_resumable(self._request)
        if reason is not None:
            raise NotResumable(
                f"an answer goes on at another worker only where its tokens say all, but this request sets {reason}; "
                "ask again without it, or retry the whole request."
            )

    def next_attempt(self) -> Attempt:
        """The next attempt to run; chunks of earlier ones count no more."""
        self.require_resumable()
        self._reports.append(AttemptReport())
        return Attempt(
            request_id=self._request.request_id,
            number=len(self._reports) - 1,
            input_ids=(*self._request.prompt_ids, *self.token_ids),
            num_emitted=self.num_emitted,
            sampling=self._remaining_sampling(),
            return_logprob=self._request.return_logprob,
            top_logprobs_num=self._request.top_logprobs_num,
            extra=self._request.extra,
        )

    def accept(self, chunk: TokenChunk) -> Progress | None:
        """Take a chunk; None where it brings nothing new.

        Raises:
            WorkerLost: tokens are missing, or are not the ones sent before. Going on would pass the damage to the
                client, so the attempt counts as lost.
        """
        current = len(self._reports) - 1
        if chunk.attempt < current or self.finish_reason is not None:
            return None
        if chunk.attempt > current:
            raise WorkerLost(f"chunks must be of attempt {current}, got one of attempt {chunk.attempt}.")
        start = self.num_emitted
        num_known = self._check_indices(chunk)
        self._reports[-1].meta |= chunk.meta
        unread = self._take(chunk, num_known)
        self._settle(chunk, unread)
        if start == self.num_emitted and self.finish_reason is None:
            return None
        return self._progress(start)

    def complete_without_worker(self) -> Progress | None:
        """The final progress where all tokens came and only the worker's last word is missing, else None."""
        total_len, limit = len(self._request.prompt_ids) + self.num_emitted, self._limits.max_total_len
        if self._ending is None and self.token_ids and limit is not None and total_len >= limit:
            self._ending = self._length()
        if self._ending is None or self.finish_reason is not None:
            return None
        self.finish_reason = self._ending
        return self._progress(self.num_emitted)

    def _remaining_sampling(self) -> dict[str, Any]:
        """The request's parameters for what is left. A seed needs no change: SGLang draws by seed and position."""
        sampling = dict(self._request.sampling)
        limit = self._max_new_tokens
        sampling["max_new_tokens"] = None if limit is None else max(0, limit - self.num_emitted)
        if sampling.get("min_new_tokens"):
            sampling["min_new_tokens"] = max(0, sampling["min_new_tokens"] - self.num_emitted)
        return sampling

    def _check_indices(self, chunk: TokenChunk) -> int:
        """How many of the chunk's tokens are out already."""
        num_known = self.num_emitted - chunk.first
        if num_known < 0:
            raise WorkerLost(f"tokens must follow without a gap: expected {self.num_emitted}, got {chunk.first}.")
        again = chunk.token_ids[:num_known]
        if chunk.first < 0 or list(again) != self.token_ids[chunk.first : chunk.first + len(again)]:
            raise WorkerLost(f"tokens sent twice must be the same, got others from index {chunk.first} on.")
        for name, values, asked in (
            ("logprobs", chunk.logprobs, self._request.return_logprob),
            ("top_logprobs", chunk.top_logprobs, self._request.top_logprobs_num > 0),
        ):
            if asked and self._request.return_logprob and len(values) < len(chunk.token_ids):
                raise WorkerLost(f"{name} must come with every token, got {len(values)} for {len(chunk.token_ids)}.")
        return num_known

    def _take(self, chunk: TokenChunk, num_known: int) -> int:
        """Emit the new tokens up to the one that ends the answer; how many stand after that."""
        for at in range(num_known, len(chunk.token_ids)):
            if self._ending is not None:
                return len(chunk.token_ids) - at
            self._emit(chunk.token_ids[at])
            self.logprobs.extend(chunk.logprobs[at : at + 1])
            self.top_logprobs.extend(chunk.top_logprobs[at : at + 1])
        return 0

    def _emit(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self._reports[-1].num_tokens += 1
        # The order of Req.update_finish_state (sglang/srt/managers/schedule_batch.py): string, token, length.
        matched = self._watch(token_id) if self._watch is not None else None
        if matched is not None:
            self._ending = matched
        elif token_id in self._stop_token_ids:
            self._ending = {"type": "stop", "matched": token_id}
        elif self._max_new_tokens is not None and self.num_emitted >= self._max_new_tokens:
            self._ending = self._length()

    def _settle(self, chunk: TokenChunk, num_unread: int) -> None:
        """Finish the answer where it ended and nothing more is to come for it."""
        theirs, ours = chunk.finish_reason, self._ending
        if ours is None:
            if theirs is not None:
                # The engine's length is that of its own part.
                self.finish_reason = theirs if theirs.get("type") != "length" else self._length()
        elif theirs is None and num_unread == 0 and not isinstance(ours.get("matched"), str):
            # The engine ends here too: its closing chunk carries the counters.
            return
        elif ours["type"] == "length" and theirs is not None and theirs.get("type") == "stop" and num_unread == 0:
            self.finish_reason = theirs
        else:
            self.finish_reason = ours

    def _length(self) -> FinishReason:
        return {"type": "length", "length": self.num_emitted}

    def _progress(self, start: int) -> Progress:
        return Progress(tuple(self.token_ids[start:]), self.num_emitted, self.finish_reason, self._meta())

    def _meta(self) -> dict[str, Any]:
        meta = merge_reports(self._reports)
        meta |= {
            "id": self._request.request_id,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self._request.prompt_ids),
            "completion_tokens": self.num_emitted,
        }
        if self._request.return_logprob:
            meta.setdefault("input_token_logprobs", [])
            meta |= {"output_token_logprobs": self.logprobs, "output_token_logprobs_length": len(self.logprobs)}
            if self._request.top_logprobs_num > 0:
                meta.setdefault("input_top_logprobs", [])
                meta["output_top_logprobs"] = self.top_logprobs
        if "cached_tokens" in meta:
            # The first attempt to report may have had part of the answer in its prompt.
            meta["cached_tokens"] = min(meta["cached_tokens"], len(self._request.prompt_ids))
        return meta
