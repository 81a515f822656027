"""What passes between the router and the replicas: requests, attempts, chunks of tokens, and how an attempt can fail.

Tokens are the unit. A replica streams token ids; text, stop strings and usage are made once, by whoever talks to the
client, so that an answer that began on one replica can go on at another. Nothing here imports Ray or SGLang.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

FinishReason = Mapping[str, Any]
"""SGLang's: {"type": "stop" | "length" | "abort", ...}."""

# Code points that no character may have, and a pickled string no less.
FIRST_SURROGATE, NUM_SURROGATES = 0xD800, 0x800


@dataclass(frozen=True)
class TokenRequest:
    """One prompt and one answer, as the client asked for it (`n` and lists of prompts are split before)."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Mapping[str, Any]  # SGLang's sampling parameters by its own names
    return_logprob: bool = False
    top_logprobs_num: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of SGLang's GenerateReqInput


@dataclass(frozen=True)
class Attempt:
    """What one replica is asked to do: go on from `input_ids`, whose last `num_emitted` are the answer so far."""

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
        """The input as a string of one character per token: `ray.serve.llm`'s prefix router compares strings."""
        return "".join(chr(token if token < FIRST_SURROGATE else token + NUM_SURROGATES) for token in self.input_ids)


@dataclass(frozen=True)
class TokenChunk:
    """Tokens of one attempt, in order; the last chunk carries `finish_reason` and may hold no token.

    The first one holds none: it says that the replica has taken the attempt, which ends the wait for room at one.
    """

    attempt: int
    first: int  # index of the first token in the whole answer, `num_emitted` of the attempt onwards
    token_ids: tuple[int, ...]
    # One per token, as in SGLang's meta_info: (log-probability, token id, None), and the best of those; empty if not
    # asked for.
    logprobs: tuple[Any, ...] = ()
    top_logprobs: tuple[Any, ...] = ()
    finish_reason: FinishReason | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # SGLang's meta_info of this attempt


class TokenSource(Protocol):
    """Where attempts run: a Ray Serve deployment, or a fake in tests."""

    def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        """Run an attempt on some replica; closing the iterator before its last chunk aborts it there.

        Raises:
            WorkerLost: the replica died, hung or was taken away; the answer may go on at another.
            Busy: every replica and its queue are full; nothing was generated.
            Refused: the engine refused the request (its status and reason); no other replica would take it.
        """


class WorkerLost(Exception):
    """The replica that ran an attempt is gone; says how it was noticed."""


class Busy(Exception):
    """No replica takes more requests now."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The engine will not do this request, here or elsewhere."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class NotResumable(Exception):
    """The request lost its worker and may not go on from its tokens alone; says why."""


class GaveUp(Exception):
    """The request lost more workers than its limit allows."""


class DeadlineExceeded(GaveUp):
    """The answer was not complete in time, whether workers were lost or not."""
