"""What passes between the retries and the replicas: requests, attempts, chunks of tokens, and how an attempt can fail.

Tokens are the unit. A replica streams token ids. Text, stop strings and usage are made once, on the side of the client,
so that an answer that began on one replica can go on at another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

FinishReason = Mapping[str, Any]
"""SGLang's finish reason: {"type": "stop" | "length" | "abort", ...}."""

# The surrogate code points: no character has them, and a string that holds one cannot be pickled.
FIRST_SURROGATE, NUM_SURROGATES = 0xD800, 0x800


@dataclass(frozen=True)
class TokenRequest:
    """One prompt and one answer, as the client asked for it; `n` and lists of prompts are split before."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Mapping[str, Any]  # SGLang's sampling parameters by its own names
    return_logprob: bool = False
    top_logprobs_num: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of SGLang's GenerateReqInput


@dataclass(frozen=True)
class Attempt:
    """What one replica is asked to do: continue `input_ids`, whose last `num_emitted` tokens are the answer so far."""

    request_id: str
    number: int  # 0 for the first attempt; chunks of older attempts are dropped
    input_ids: tuple[int, ...]
    num_emitted: int
    sampling: Mapping[str, Any]
    return_logprob: bool = False
    top_logprobs_num: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine_request_id(self) -> str:
        """The id under which a replica runs this attempt, so that an old attempt can be aborted beside a new one."""
        return f"{self.request_id}-{self.number}"

    @property
    def prompt(self) -> str:
        """The input as a string with one character per token: `ray.serve.llm`'s prefix router compares strings."""
        return "".join(chr(token if token < FIRST_SURROGATE else token + NUM_SURROGATES) for token in self.input_ids)


@dataclass(frozen=True)
class TokenChunk:
    """Tokens of one attempt, in order; the last chunk carries `finish_reason` and may hold no token.

    The first chunk holds no token: it says that the replica accepted the attempt, which ends the wait for a free one.
    """

    attempt: int
    first: int  # index of the first token in the whole answer, `num_emitted` of the attempt onwards
    token_ids: tuple[int, ...]
    # One entry per token, as in SGLang's meta_info: (log-probability, token id, None), and the list of the most
    # probable ones. Empty if not asked for.
    logprobs: tuple[Any, ...] = ()
    top_logprobs: tuple[Any, ...] = ()
    finish_reason: FinishReason | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # SGLang's meta_info of this attempt


class TokenSource(Protocol):
    """Where attempts run: a Ray Serve deployment, or a fake in tests."""

    def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        """Run an attempt on some replica. Closing the iterator before its last chunk aborts the attempt there.

        Raises:
            WorkerLost: the replica died, hung or was taken down; the answer may go on at another.
            Busy: every replica and its queue are full; nothing was generated.
            Refused: the engine refused the request, with its status and reason; every replica would refuse it.
        """


class WorkerLost(Exception):
    """The replica that ran an attempt is gone; the message says how that was noticed."""


class Busy(Exception):
    """Every replica is full; ask again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The engine refuses this request, on every replica; `status` is an HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class NotResumable(Exception):
    """The answer lost its replica and cannot go on from its tokens alone; the message says why."""


class GaveUp(Exception):
    """The answer lost more replicas than `migration_limit` allows."""


class DeadlineExceeded(GaveUp):
    """The answer was not complete within `deadline_s`, whether replicas were lost or not."""
