"""The generator over replicas that die, hang, are slow or full, by script and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.workers import virtual_time
from tests.workers.fake_engine import EOS, FakeEngine, request
from tests.workers.fake_source import ANSWER, Act, ScriptedSource
from workers.answers.protocol import (
    Attempt,
    Busy,
    DeadlineExceeded,
    GaveUp,
    NotResumable,
    Refused,
    TokenChunk,
    TokenRequest,
    TokenSource,
    WorkerLost,
)
from workers.answers.resume import EngineLimits, Progress, ResumableAnswer
from workers.answers.retry import AnswerCounters, RetryingGenerator, RetryPolicy
from workers.answers.text import AnswerText, TextRules

LIMITS = EngineLimits(EOS)
DIED = WorkerLost("the replica died")


class Sleeper:
    """Sleeps in virtual time and remembers how long."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.delays.append(delay_s)
        await asyncio.sleep(delay_s)


def generator_over(
    source: TokenSource,
    sleeper: Sleeper | None = None,
    counters: AnswerCounters | None = None,
    observe_resume: Callable[[float], None] = lambda seconds: None,
    **policy: Any,
) -> RetryingGenerator:
    return RetryingGenerator(
        source,
        RetryPolicy(**policy),
        sleep=(sleeper or Sleeper()).sleep,
        clock=virtual_time.clock,
        jitter=lambda: 1.0,
        counters=counters,
        observe_resume=observe_resume,
    )


async def collect(generator: RetryingGenerator, asked: TokenRequest) -> list[Progress]:
    return [progress async for progress in generator.generate(ResumableAnswer(asked, LIMITS))]


def tokens_of(parts: list[Progress]) -> tuple[int, ...]:
    return tuple(token for part in parts for token in part.token_ids)


def answered(
    script: list[Act], asked: TokenRequest | None = None, **policy: Any
) -> tuple[ScriptedSource, RetryingGenerator]:
    """Run a script that must end in the whole answer."""
    source = ScriptedSource(script)
    generator = generator_over(source, **policy)

    async def body() -> None:
        asked_for = asked or request(max_new_tokens=12)
        answer = ResumableAnswer(asked_for, LIMITS)
        parts = [progress async for progress in generator.generate(answer)]
        assert tokens_of(parts) == ANSWER[: asked_for.sampling["max_new_tokens"]] == tuple(answer.token_ids)
        assert [part.finish_reason is None for part in parts] == [True] * (len(parts) - 1) + [False]
        assert answer.meta()["completion_tokens"] == asked_for.sampling["max_new_tokens"]

    virtual_time.run(body)
    return source, generator


def failed(
    script: list[Act], kind: type[Exception], match: str, asked: TokenRequest | None = None, **policy: Any
) -> tuple[ScriptedSource, RetryingGenerator]:
    """Run a script that must end in an error."""
    source = ScriptedSource(script)
    generator = generator_over(source, **policy)

    async def body() -> None:
        with pytest.raises(kind, match=match):
            await collect(generator, asked or request(max_new_tokens=12))

    virtual_time.run(body)
    return source, generator


def test_an_answer_without_faults_takes_one_attempt() -> None:
    source, generator = answered([])
    assert len(source.attempts) == 1
    assert generator.counters == AnswerCounters(requests=1, attempts=1, tokens=12, finished=1)


@pytest.mark.parametrize("num_before", [0, 1, 5, 11])
@pytest.mark.parametrize("act", [Act(error=DIED), Act(), Act(hangs=True)], ids=["dies", "ends early", "hangs"])
def test_a_worker_lost_after_any_token_costs_nothing_of_the_answer(num_before: int, act: Act) -> None:
    source, generator = answered(
        [replace(act, num_chunks=num_before)], stall_timeout_s=0.05, first_token_timeout_s=0.05
    )
    assert [attempt.num_emitted for attempt in source.attempts] == [0, num_before]
    counters = generator.counters
    assert (counters.lost, counters.resumed, counters.restarted) == (1, int(num_before > 0), int(num_before == 0))
    assert source.closed == ([0] if act.hangs else []) + [1]


def test_a_worker_lost_after_the_last_token_ends_the_answer_without_another() -> None:
    class NoClosing(FakeEngine):
        def run(self, attempt: Attempt, sizes: Any = (1,)) -> list[TokenChunk]:
            return [replace(chunk, finish_reason=None) for chunk in super().run(attempt, sizes)]

    source = ScriptedSource([Act(error=DIED)], engine=NoClosing(ANSWER))
    generator = generator_over(source)

    async def body() -> None:
        parts = await collect(generator, request(max_new_tokens=12))
        assert tokens_of(parts) == ANSWER[:12]
        assert parts[-1].finish_reason == {"type": "length", "length": 12}

    virtual_time.run(body)
    assert len(source.attempts) == 1
    assert (generator.counters.finished, generator.counters.lost) == (1, 1)


def test_flapping_workers_are_followed_up_to_the_limit_with_growing_waits() -> None:
    source, sleeper = ScriptedSource([Act(2, DIED), Act(0, DIED), Act(3, DIED)]), Sleeper()
    generator = generator_over(source, sleeper)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=12))) == ANSWER[:12]

    virtual_time.run(body)
    assert [attempt.num_emitted for attempt in source.attempts] == [0, 2, 2, 5]
    assert sleeper.delays == [0.1, 0.2, 0.4]
    assert (generator.counters.resumed, generator.counters.lost, generator.counters.tokens) == (3, 3, 12)


def test_time_without_a_worker_is_told_once_the_answer_goes_on() -> None:
    # Two losses in a row are one silence: 0.1 s, then 0.2 s of waiting; the third is another of 0.4 s.
    silences: list[float] = []
    generator = generator_over(
        ScriptedSource([Act(2, DIED), Act(0, DIED), Act(3, DIED)]), observe_resume=silences.append
    )

    async def body() -> None:
        await collect(generator, request(max_new_tokens=12))

    virtual_time.run(body)
    assert silences == pytest.approx([0.3, 0.4])


def test_waits_double_up_to_a_longest_and_spread_by_half() -> None:
    policy = RetryPolicy()
    assert [policy.backoff_s(number, 1.0) for number in (1, 2, 3, 5, 6, 1000)] == [0.1, 0.2, 0.4, 1.6, 2.0, 2.0]
    assert policy.backoff_s(1, 0.0) == 0.05


@pytest.mark.parametrize("num_before", [0, 3])
def test_one_loss_more_than_the_limit_gives_up_with_progress_or_without(num_before: int) -> None:
    source, generator = failed(
        [Act(num_before, DIED)] * 3, GaveUp, r"lose 2 replicas .* lost 3; .*died", migration_limit=2
    )
    assert len(source.attempts) == 3
    assert generator.counters.gave_up == 1


def test_no_loss_is_allowed_where_the_limit_is_zero() -> None:
    failed([Act(1, DIED)], GaveUp, "lose 0 replicas", migration_limit=0)


def test_a_total_deadline_ends_the_tries() -> None:
    # 0.1 s and 0.2 s fit, 0.4 s more do not.
    source, _ = failed([Act(1, DIED)] * 9, DeadlineExceeded, r"within 0\.5 s .* the last try failed: the replica died",
                       deadline_s=0.5, migration_limit=9)  # fmt: skip
    assert len(source.attempts) == 3


def test_a_total_deadline_ends_an_attempt_that_is_only_slow() -> None:
    source = ScriptedSource([Act(pause_s=0.04)])
    generator = generator_over(source, deadline_s=0.2)

    async def body() -> None:
        with pytest.raises(DeadlineExceeded, match="still being generated"):
            await collect(generator, request(max_new_tokens=20))

    virtual_time.run(body)
    assert source.closed == [0]


def test_a_slow_worker_is_not_a_lost_one() -> None:
    source = ScriptedSource([Act(pause_s=0.01)])
    generator = generator_over(source, stall_timeout_s=0.5)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=12))) == ANSWER[:12]

    virtual_time.run(body)
    assert generator.counters.lost == 0


def test_the_first_chunk_may_take_longer_than_the_others() -> None:
    source = ScriptedSource([Act(num_chunks=1, pause_s=0.15, hangs=True)])
    generator = generator_over(source, stall_timeout_s=0.05, first_token_timeout_s=5.0)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=3))) == ANSWER[:3]

    virtual_time.run(body)
    assert [attempt.num_emitted for attempt in source.attempts] == [0, 1]


def test_waiting_for_room_is_no_loss_however_long_it_takes() -> None:
    source, generator = answered([Act(3, DIED), Act(no_room_s=15.0)], first_token_timeout_s=5.0, stall_timeout_s=5.0)
    assert [attempt.num_emitted for attempt in source.attempts] == [0, 3]
    assert generator.counters.lost == 1


def test_room_that_never_comes_ends_with_the_deadline() -> None:
    source, generator = failed([Act(no_room_s=15.0)], DeadlineExceeded, "no replica had room", deadline_s=10.0)
    assert source.closed == [0]
    assert (generator.counters.late, generator.counters.gave_up, generator.counters.lost) == (1, 0, 0)


def test_a_worker_that_took_the_attempt_and_says_nothing_is_lost_after_the_longer_time() -> None:
    taken: list[float] = []
    source = ScriptedSource([Act(0, hangs=True)])
    generator = generator_over(source, first_token_timeout_s=12.0, stall_timeout_s=5.0)

    async def body() -> None:
        started = virtual_time.clock()
        assert tokens_of(await collect(generator, request(max_new_tokens=3))) == ANSWER[:3]
        taken.append(virtual_time.clock() - started)

    virtual_time.run(body)
    assert 12.0 <= taken[0] < 13.0
    assert (generator.counters.lost, generator.counters.restarted) == (1, 1)


def test_a_hanging_workers_stream_is_closed_before_the_next_attempt() -> None:
    source, _ = answered([Act(2, hangs=True)], stall_timeout_s=0.05)
    assert source.closed[0] == 0


class Stubborn(ScriptedSource):
    """Its first stream waits for a replica that never answers, however it is stopped."""

    async def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        try:
            async for chunk in super().stream(attempt):
                yield chunk
        finally:
            if attempt.number == 0:
                await asyncio.Event().wait()


def test_a_hanging_stream_that_does_not_stop_either_is_left_alone() -> None:
    source = Stubborn([Act(2, hangs=True)])
    generator = generator_over(source, stall_timeout_s=0.05, close_timeout_s=0.05)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=4))) == ANSWER[:4]

    virtual_time.run(body)
    assert [attempt.num_emitted for attempt in source.attempts] == [0, 2]


def test_a_stream_that_does_not_close_at_the_end_is_left_alone() -> None:
    generator = generator_over(Stubborn([]), close_timeout_s=0.05)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=4))) == ANSWER[:4]

    virtual_time.run(body)
    assert generator.counters.finished == 1


def test_busy_at_the_start_goes_to_the_caller() -> None:
    source, generator = failed([Act(0, Busy("full", 2.0))], Busy, "full")
    assert len(source.attempts) == 1
    assert (generator.counters.busy, generator.counters.busy_waits) == (1, 0)


@pytest.mark.parametrize("num_before", [0, 2])
def test_busy_while_going_on_waits_and_tries_again(num_before: int) -> None:
    busy = Act(0, Busy("full", 0.7))
    source, sleeper = ScriptedSource([Act(num_before, DIED), busy, busy]), Sleeper()
    generator = generator_over(source, sleeper, migration_limit=1)

    async def body() -> None:
        assert tokens_of(await collect(generator, request(max_new_tokens=12))) == ANSWER[:12]

    virtual_time.run(body)
    assert sleeper.delays == [0.1, 0.7, 0.7]
    assert (generator.counters.lost, generator.counters.busy_waits, generator.counters.busy) == (1, 2, 0)


def test_busy_while_going_on_ends_with_the_deadline() -> None:
    source, _ = failed([Act(2, DIED), *[Act(0, Busy("full", 1.0))] * 50], DeadlineExceeded, "the last try failed: full",
                       deadline_s=5.0)  # fmt: skip
    assert 4 <= len(source.attempts) <= 7


@pytest.mark.parametrize(
    "script", [[Act(0, Refused("too long", 413))], [Act(2, DIED), Act(0, Refused("too long", 413))]]
)
def test_a_refusal_goes_to_the_caller_and_to_no_other_replica(script: list[Act]) -> None:
    source, generator = failed(script, Refused, "too long")
    assert len(source.attempts) == len(script)
    assert generator.counters.refused == 1


def test_a_request_with_state_starts_again_only_while_nothing_is_out() -> None:
    source, generator = answered([Act(0, DIED)], request(max_new_tokens=12, regex="a*"))
    assert (len(source.attempts), generator.counters.restarted) == (2, 1)
    source, generator = failed(
        [Act(2, DIED)], NotResumable, r"regex: .* lost after 2 tokens: the replica died",
        request(max_new_tokens=12, regex="a*"),
    )  # fmt: skip
    assert (len(source.attempts), generator.counters.not_resumable) == (1, 1)


def test_a_caller_that_closes_the_answer_stops_the_replica() -> None:
    source = ScriptedSource([])
    generator = generator_over(source)

    async def body() -> None:
        parts = generator.generate(ResumableAnswer(request(max_new_tokens=12), LIMITS))
        assert (await anext(parts)).token_ids == ANSWER[:1]
        await parts.aclose()
        assert source.closed == [0]

    virtual_time.run(body)
    assert (generator.counters.cancelled, generator.counters.finished) == (1, 0)


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_cancelled_caller_stops_the_replica_wherever_it_waits(num_before: int) -> None:
    source = ScriptedSource([Act(num_before, hangs=True)])
    generator = generator_over(source)

    async def body() -> None:
        task = asyncio.create_task(collect(generator, request(max_new_tokens=12)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed == [0]

    virtual_time.run(body)
    assert generator.counters.cancelled == 1


def test_an_answer_whose_text_ended_stops_the_replica() -> None:
    source = ScriptedSource([])
    generator = generator_over(source)

    async def body() -> None:
        stop = chr(ANSWER[3])
        text = AnswerText(lambda ids, skip_special_tokens: "".join(map(chr, ids)), TextRules(stop=(stop,)))
        answer = ResumableAnswer(request(max_new_tokens=12), LIMITS, text)
        parts = [part async for part in generator.generate(answer)]
        assert tokens_of(parts) == ANSWER[:4]
        assert parts[-1].finish_reason == {"type": "stop", "matched": stop}
        assert text.text == "".join(map(chr, ANSWER[:3]))

    virtual_time.run(body)
    assert source.closed == [0]


def test_an_error_that_is_not_the_protocols_is_not_swallowed() -> None:
    source, generator = failed([Act(2, RuntimeError("a bug"))], RuntimeError, "a bug")
    assert len(source.attempts) == 1
    assert generator.counters.cancelled == 1


def test_every_request_ends_in_exactly_one_outcome() -> None:
    counters = AnswerCounters()

    async def body() -> None:
        for script in ([], [Act(0, Busy("full"))], [Act(1, DIED)] * 5, [Act(0, Refused("no"))]):
            generator = generator_over(ScriptedSource(script), counters=counters)
            with suppress(Busy, GaveUp, Refused):
                await collect(generator, request(max_new_tokens=12))

    virtual_time.run(body)
    assert (counters.requests, counters.finished, counters.busy, counters.gave_up, counters.refused) == (4, 1, 1, 1, 1)


@pytest.mark.parametrize(("name", "value"), [("migration_limit", -1), ("deadline_s", 0.0), ("stall_timeout_s", -1.0)])
def test_a_policy_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .* got {value}"):
        RetryPolicy(**{name: value})


def test_a_source_without_aclose_is_a_source() -> None:
    class Plain:
        def __init__(self, chunks: AsyncGenerator[TokenChunk, None]) -> None:
            self.chunks = chunks

        def __aiter__(self) -> Plain:
            return self

        async def __anext__(self) -> TokenChunk:
            return await anext(self.chunks)

    class PlainSource:
        def stream(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
            return Plain(ScriptedSource([]).stream(attempt))  # type: ignore[arg-type]

    async def body() -> None:
        assert tokens_of(await collect(generator_over(PlainSource()), request(max_new_tokens=4))) == ANSWER[:4]

    virtual_time.run(body)
