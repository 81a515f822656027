"""Runs one answer to its end over replicas that may die, hang or be full on the way.

Asyncio and the protocol only: a `TokenSource` runs the attempts, so all of this is tested without Ray. Callers rely on
three things: `generate` yields one gapless answer; it ends with a finish reason or an exception, never silently; and
closing it stops the replica.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from workers.answers.chunk_stream import ChunkStream
from workers.answers.protocol import (
    Busy,
    DeadlineExceeded,
    GaveUp,
    NotResumable,
    Refused,
    TokenChunk,
    TokenSource,
    WorkerLost,
)
from workers.answers.resume import Progress, ResumableAnswer


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often to try.

    Attributes:
        migration_limit: replicas that one answer may lose and still go on, whether or not tokens came in between.
        first_backoff_s: seconds to wait after the first loss; doubled after each further one.
        max_backoff_s: the longest such wait.
        deadline_s: seconds for the whole answer, waiting and generating. Set it above what the longest answer takes.
        first_token_timeout_s: a replica that accepted an attempt and sends no token for so many seconds (the engine's
            queue and prefill) counts as lost. Time spent waiting for a free replica does not count.
        stall_timeout_s: a replica that sends no further token for so many seconds counts as lost.
        close_timeout_s: seconds that a replica has to acknowledge a closed stream; after that it is left alone.
    """

    migration_limit: int = 3
    first_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    deadline_s: float = 1800.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 30.0
    close_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if self.migration_limit < 0:
            raise ValueError(
                f"migration_limit must be at least 0, got {self.migration_limit}; 0 gives up at the first loss."
            )
        for name, value in vars(self).items():
            if name.endswith("_s") and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}; give seconds.")

    def backoff_s(self, number: int, jitter: float) -> float:
        """Seconds to wait before try `number` (from 1): half to all of the doubled time, so that tries spread out."""
        longest = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** min(number - 1, 30))
        return longest * (0.5 + 0.5 * jitter)


@dataclass
class AnswerCounters:
    """Totals since the start. Every request ends in exactly one of the seven outcomes at the end of the list."""

    requests: int = 0
    attempts: int = 0
    tokens: int = 0
    lost: int = 0  # replicas
    resumed: int = 0  # attempts that went on from tokens
    restarted: int = 0  # attempts that began anew, as no token had been sent
    busy_waits: int = 0  # waits of a resumed answer while every replica was full

    finished: int = 0
    busy: int = 0
    refused: int = 0
    not_resumable: int = 0
    late: int = 0  # not complete by the deadline
    gave_up: int = 0
    cancelled: int = 0  # the caller went away, or an unexpected error


_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Busy, "busy"),
    (Refused, "refused"),
    (NotResumable, "not_resumable"),
    (DeadlineExceeded, "late"),
    (GaveUp, "gave_up"),
    (BaseException, "cancelled"),
)


class RetryingGenerator:
    """Generates answers over a source of attempts, and tries again where a replica is lost.

    Args:
        source: where attempts run.
        policy: how long and how often to try.
        sleep: waits between tries.
        clock: seconds, never backwards.
        jitter: gives a number from 0 to 1 for each wait.
        counters: shared by several generators of a process; a new one unless given.
        observe_resume: gets the seconds from the loss of a replica to the answer's next part.
    """

    def __init__(
        self,
        source: TokenSource,
        policy: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        counters: AnswerCounters | None = None,
        observe_resume: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._source = source
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._observe_resume = observe_resume
        self.counters = counters or AnswerCounters()

    async def generate(self, answer: ResumableAnswer) -> AsyncGenerator[Progress, None]:
        """Complete an answer, part by part; the last part carries the finish reason. Close the iterator to stop early.

        Raises:
            Busy: every replica was full at the first attempt.
            Refused: the engine refused the request.
            NotResumable: a replica was lost, and the answer cannot go on from its tokens.
            GaveUp: more losses than `migration_limit`.
            DeadlineExceeded: longer than `deadline_s`.
        """
        self.counters.requests += 1
        try:
            async with aclosing(self._attempts(answer, self._clock() + self._policy.deadline_s)) as parts:
                async for progress in parts:
                    self.counters.tokens += len(progress.token_ids)
                    self.counters.finished += progress.finish_reason is not None
                    yield progress
        except BaseException as error:
            if answer.finish_reason is None:
                outcome = next(name for kind, name in _OUTCOMES if isinstance(error, kind))
                setattr(self.counters, outcome, getattr(self.counters, outcome) + 1)
            raise

    async def _attempts(self, answer: ResumableAnswer, deadline: float) -> AsyncGenerator[Progress, None]:
        num_lost = num_waits = 0
        lost_at: float | None = None
        while answer.finish_reason is None:
            try:
                async with aclosing(self._run(answer, deadline)) as parts:
                    async for progress in parts:
                        if lost_at is not None:
                            self._observe_resume(self._clock() - lost_at)
                            lost_at = None
                        yield progress
            except WorkerLost as loss:
                num_lost += 1
                lost_at = self._clock() if lost_at is None else lost_at
                self.counters.lost += 1
                if (last := answer.complete_without_worker()) is not None:
                    yield last
                    return
                self._require_another_try(answer, num_lost, loss)
                await self._wait(self._backoff_s(num_lost), deadline, loss)
                self.counters.resumed += answer.num_emitted > 0
                self.counters.restarted += answer.num_emitted == 0
            except Busy as busy:
                if num_lost == 0:
                    raise
                num_waits += 1
                self.counters.busy_waits += 1
                asked_s = min(busy.retry_after_s, self._policy.max_backoff_s)
                await self._wait(max(asked_s, self._backoff_s(num_waits)), deadline, busy)

    async def _run(self, answer: ResumableAnswer, deadline: float) -> AsyncGenerator[Progress, None]:
        """One attempt, up to the end of the answer."""
        self.counters.attempts += 1
        stream = ChunkStream(self._source.stream(answer.next_attempt()), self._policy.close_timeout_s)
        silence_s = math.inf
        num_before = answer.num_emitted
        try:
            while answer.finish_reason is None:
                progress = answer.accept(await self._next_chunk(stream, silence_s, deadline))
                began = answer.num_emitted > num_before
                silence_s = self._policy.stall_timeout_s if began else self._policy.first_token_timeout_s
                if progress is not None:
                    yield progress
        finally:
            await stream.close()

    async def _next_chunk(self, stream: ChunkStream, silence_s: float, deadline: float) -> TokenChunk:
        left_s = deadline - self._clock()
        try:
            return await stream.next(min(silence_s, left_s))
        except TimeoutError:
            if left_s <= silence_s:
                state = "no replica had room for it" if silence_s == math.inf else "it was still being generated"
                raise DeadlineExceeded(self._deadline_message(state)) from None
            raise WorkerLost(f"the replica sent nothing for {silence_s} s.") from None

    def _require_another_try(self, answer: ResumableAnswer, num_lost: int, loss: WorkerLost) -> None:
        try:
            answer.require_resumable()
        except NotResumable as refusal:
            raise NotResumable(f"{refusal} The replica was lost after {answer.num_emitted} tokens: {loss}") from loss
        if num_lost > self._policy.migration_limit:
            raise GaveUp(
                f"an answer may lose {self._policy.migration_limit} replicas (migration_limit), this one lost "
                f"{num_lost}; find out why replicas die, or raise the limit. The last loss: {loss}"
            ) from loss

    def _backoff_s(self, number: int) -> float:
        return self._policy.backoff_s(number, self._jitter())

    async def _wait(self, delay_s: float, deadline: float, cause: WorkerLost | Busy) -> None:
        if self._clock() + delay_s >= deadline:
            raise DeadlineExceeded(self._deadline_message(f"the last try failed: {cause}")) from cause
        await self._sleep(delay_s)

    def _deadline_message(self, state: str) -> str:
        return (
            f"an answer must be complete within {self._policy.deadline_s} s (deadline_s), but {state}; "
            "ask for fewer tokens, or raise the deadline."
        )
