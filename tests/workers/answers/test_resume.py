"""Whatever workers die and whatever chunks arrive twice or late, the answer is the one without faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.byte_tokenizer import END_ID, byte_tokenizer, decode, encode, encode_bytes
from tests.workers.fake_engine import EOS, PROMPT, FakeEngine, request
from workers.answers.protocol import NotResumable, TokenChunk, TokenRequest, WorkerLost
from workers.answers.resume import DEFAULT_MAX_NEW_TOKENS, EngineLimits, Progress, ResumableAnswer
from workers.answers.text import AnswerText, TextRules

LIMITS = EngineLimits(EOS)


@dataclass(frozen=True)
class Outcome:
    """What a client gets."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: dict[str, Any]
    logprobs: tuple[Any, ...]
    usage: tuple[int, int, int]


class Client:
    """Reads an answer part by part."""

    def __init__(self, asked: TokenRequest, limits: EngineLimits = LIMITS) -> None:
        self.text = AnswerText(decode, TextRules.of(asked.sampling, limits.eos_token_ids))
        self.answer = ResumableAnswer(asked, limits, self.text)
        self.seen: list[int] = []
        self.shown = ""
        self.last: Progress | None = None

    def take(self, chunk: TokenChunk) -> None:
        self.read(self.answer.accept(chunk))

    def read(self, progress: Progress | None) -> bool:
        """Whether there was any progress."""
        if progress is None:
            return False
        self.last = progress
        self.seen.extend(progress.token_ids)
        assert self.text.text.startswith(self.shown), "what is shown stays"
        self.shown = self.text.text
        return True

    def outcome(self) -> Outcome:
        assert self.last is not None
        reason, meta = self.last.finish_reason, self.answer.meta()
        assert reason is not None
        assert meta["finish_reason"] == reason
        usage = (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"])
        return Outcome(tuple(self.seen), self.text.text, dict(reason), tuple(self.answer.logprobs), usage)


def without_faults(engine: FakeEngine, asked: TokenRequest) -> Outcome:
    """The answer over one replica, which is just what the engine says."""
    client = Client(asked)
    chunks = engine.run(client.answer.next_attempt())
    for chunk in chunks:
        client.take(chunk)
    outcome = client.outcome()
    assert outcome.token_ids == tuple(token for chunk in chunks for token in chunk.token_ids)
    assert outcome.finish_reason == chunks[-1].finish_reason
    return outcome


SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.sampled_from([None, 1, 3, 8, 40]),
        "min_new_tokens": st.sampled_from([None, 0, 2]),
        "stop": st.sampled_from([None, "STOP", ["T你", "OO"], ["🌳", "zzz"]]),
        "ignore_eos": st.booleans(),
        "no_stop_trim": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "stop_token_ids": st.sampled_from([None, [300]]),
        "sampling_seed": st.just(7),
    },
)
ANSWERS = st.lists(
    st.one_of(
        st.text(alphabet="aSTOP 你🌳", min_size=1, max_size=6).map(encode_bytes),
        st.sampled_from(["the tree", "STOP", "你好", " café"]).map(encode),
        st.lists(st.integers(0, byte_tokenizer().get_vocab_size() - 1), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: tuple(token for part in parts for token in part))


@settings(max_examples=2000, deadline=None)
@given(ANSWERS, SAMPLINGS, st.booleans(), st.data())
def test_faults_change_nothing_of_the_answer(
    tokens: tuple[int, ...], sampling: dict[str, Any], with_logprobs: bool, data: st.DataObject
) -> None:
    engine = FakeEngine(tokens)
    asked = replace(request(**sampling), return_logprob=with_logprobs, top_logprobs_num=int(with_logprobs))
    expected = without_faults(engine, asked)

    client, old = Client(asked), list[TokenChunk]()
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3), "sizes")
    num_losses = data.draw(st.integers(0, 6), "losses")
    for number in range(num_losses + 1):
        chunks = engine.run(client.answer.next_attempt(), sizes)
        lives = number == num_losses
        cut = len(chunks) if lives else data.draw(st.integers(0, len(chunks)), "killed after chunk")
        try:
            for chunk in disturbed(chunks[:cut], old, may_reorder=not lives, data=data):
                client.take(chunk)
        except WorkerLost:
            assert not lives
        old += chunks
        if client.answer.finish_reason is not None or client.read(client.answer.complete_without_worker()):
            break
    outcome = client.outcome()
    assert list(outcome.token_ids) == client.answer.token_ids
    # A first attempt that dies before its first chunk takes its word on the cache with it.
    assert replace(outcome, usage=outcome.usage[:2]) == replace(expected, usage=expected.usage[:2])
    assert outcome.usage[2] <= len(PROMPT)


def disturbed(
    chunks: list[TokenChunk], old: list[TokenChunk], may_reorder: bool, data: st.DataObject
) -> Iterator[TokenChunk]:
    """The chunks, with repetitions of themselves and late ones of earlier attempts between them, or out of order."""
    for at, chunk in enumerate(chunks):
        noise = data.draw(st.integers(0, 9), "noise")
        if noise == 1 and old:
            yield data.draw(st.sampled_from(old), "late")
        if noise == 2 and at > 0:
            yield chunks[data.draw(st.integers(0, at - 1), "again")]
        if noise == 3 and may_reorder:
            yield data.draw(st.sampled_from(chunks[at:]), "too early")
        yield chunk


def answer_after(
    num_tokens: int, asked: TokenRequest, tokens: tuple[int, ...] = tuple(range(50, 100))
) -> ResumableAnswer:
    """An answer whose first attempt died after so many tokens."""
    answer = ResumableAnswer(asked, LIMITS)
    for chunk in FakeEngine(tokens).run(answer.next_attempt())[:num_tokens]:
        answer.accept(replace(chunk, finish_reason=None))
    return answer


def test_the_next_attempt_goes_on_from_prompt_and_answer_with_what_is_left() -> None:
    asked = replace(
        request(max_new_tokens=20, min_new_tokens=6, sampling_seed=5, temperature=0.7), extra={"lora_path": "x"}
    )
    attempt = answer_after(4, asked).next_attempt()
    assert attempt.input_ids == (*PROMPT, 50, 51, 52, 53)
    assert (attempt.number, attempt.num_emitted, attempt.engine_request_id) == (1, 4, "r-1")
    assert attempt.sampling == {
        "max_new_tokens": 16, "min_new_tokens": 2, "sampling_seed": 5, "temperature": 0.7
    }  # fmt: skip
    assert attempt.extra == {"lora_path": "x"}


def test_a_minimum_that_is_reached_is_not_asked_for_again() -> None:
    assert answer_after(4, request(min_new_tokens=2)).next_attempt().sampling["min_new_tokens"] == 0


def test_the_default_length_is_that_of_the_whole_answer() -> None:
    assert answer_after(4, request()).next_attempt().sampling["max_new_tokens"] == DEFAULT_MAX_NEW_TOKENS - 4
    assert answer_after(4, request(max_new_tokens=None)).next_attempt().sampling["max_new_tokens"] is None


def test_a_gap_counts_as_a_lost_worker_and_nothing_of_the_chunk_is_kept() -> None:
    answer = ResumableAnswer(request(), LIMITS)
    answer.next_attempt()
    answer.accept(TokenChunk(0, 0, (7,)))
    with pytest.raises(WorkerLost, match="without a gap: expected 1, got 2"):
        answer.accept(TokenChunk(0, 2, (9,), finish_reason={"type": "stop"}))
    assert (answer.token_ids, answer.finish_reason) == ([7], None)


def test_a_token_sent_again_must_be_the_same() -> None:
    answer = ResumableAnswer(request(), LIMITS)
    answer.next_attempt()
    answer.accept(TokenChunk(0, 0, (7, 8)))
    assert answer.accept(TokenChunk(0, 0, (7, 8))) is None
    with pytest.raises(WorkerLost, match="must be the same"):
        answer.accept(TokenChunk(0, 1, (9, 10)))
    assert answer.token_ids == [7, 8]


def test_a_chunk_of_an_attempt_that_was_never_asked_for_counts_as_a_lost_worker() -> None:
    answer = ResumableAnswer(request(), LIMITS)
    answer.next_attempt()
    with pytest.raises(WorkerLost, match="attempt 0, got one of attempt 1"):
        answer.accept(TokenChunk(1, 0, (7,)))


def test_a_dead_attempts_tokens_and_finish_reason_are_dropped() -> None:
    answer = answer_after(2, request())
    answer.next_attempt()
    assert answer.accept(TokenChunk(0, 2, (52,), finish_reason={"type": "stop", "matched": 1})) is None
    assert (answer.num_emitted, answer.finish_reason) == (2, None)


@pytest.mark.parametrize("field", ["logprobs", "top_logprobs"])
def test_log_probabilities_must_come_with_every_token(field: str) -> None:
    asked = replace(request(), return_logprob=True, top_logprobs_num=1)
    answer = ResumableAnswer(asked, LIMITS)
    answer.next_attempt()
    chunk = TokenChunk(0, 0, (7,), logprobs=((-1.0, 7, None),), top_logprobs=([(-1.0, 7, None)],))
    with pytest.raises(WorkerLost, match=f"{field} must come with every token"):
        answer.accept(replace(chunk, **{field: ()}))


@pytest.mark.parametrize(
    ("sampling", "tokens", "num_before", "expected"),
    [
        ({"max_new_tokens": 5}, tuple(range(50, 60)), 5, {"type": "length", "length": 5}),
        ({}, (50, 51, END_ID), 3, {"type": "stop", "matched": END_ID}),
        ({"stop_token_ids": [51]}, (50, 51, 52), 2, {"type": "stop", "matched": 51}),
    ],
)
def test_an_answer_whose_last_token_came_is_complete_without_its_last_chunk(
    sampling: dict[str, Any], tokens: tuple[int, ...], num_before: int, expected: dict[str, Any]
) -> None:
    answer = answer_after(num_before, request(**sampling), tokens)
    assert answer.finish_reason is None, "the worker's counters may still come"
    last = answer.complete_without_worker()
    assert last is not None
    assert (last.token_ids, answer.num_emitted, last.finish_reason) == ((), num_before, expected)
    assert answer.complete_without_worker() is None


def test_an_end_token_that_is_ignored_completes_nothing() -> None:
    answer = answer_after(3, request(ignore_eos=True, stop_token_ids=[51]), (50, 51, END_ID, 52))
    assert answer.complete_without_worker() is None


def test_an_answer_that_fills_the_context_is_complete_when_its_worker_is_lost() -> None:
    answer = ResumableAnswer(request(max_new_tokens=None), EngineLimits(EOS, max_total_len=len(PROMPT) + 2))
    answer.next_attempt()
    answer.accept(TokenChunk(0, 0, (50,)))
    assert answer.complete_without_worker() is None
    answer.accept(TokenChunk(0, 1, (51,)))
    last = answer.complete_without_worker()
    assert last is not None
    assert last.finish_reason == {"type": "length", "length": 2}


def test_an_answer_that_no_engine_would_take_as_a_prompt_does_not_go_on() -> None:
    answer = ResumableAnswer(request(max_new_tokens=9), EngineLimits(EOS, max_input_len=len(PROMPT) + 2))
    answer.next_attempt()
    answer.require_resumable()
    answer.accept(TokenChunk(0, 0, (50, 51)))
    answer.require_resumable()
    answer.accept(TokenChunk(0, 2, (52,)))
    with pytest.raises(NotResumable, match=f"fit a prompt of {len(PROMPT) + 2} tokens, got {len(PROMPT) + 3}"):
        answer.next_attempt()


def test_nothing_to_generate_is_complete_when_its_worker_is_lost() -> None:
    answer = ResumableAnswer(request(max_new_tokens=0), LIMITS)
    answer.next_attempt()
    last = answer.complete_without_worker()
    assert last is not None
    assert last.finish_reason == {"type": "length", "length": 0}


def test_a_chunk_of_older_tokens_does_not_end_an_answer_that_waits_for_its_counters() -> None:
    answer = ResumableAnswer(request(), LIMITS)
    answer.next_attempt()
    answer.accept(TokenChunk(0, 0, (7, 8, next(iter(EOS)))))
    answer.accept(TokenChunk(0, 0, (7,)))
    assert answer.finish_reason is None


def test_a_closing_chunk_after_the_last_token_brings_its_counters() -> None:
    answer = answer_after(2, request(max_new_tokens=2))
    last = answer.accept(
        TokenChunk(0, 2, (), finish_reason={"type": "length", "length": 2}, meta={"spec_verify_ct": 1})
    )
    assert last is not None
    assert answer.meta()["spec_verify_ct"] == 1
    assert last.finish_reason == {"type": "length", "length": 2}


def test_tokens_after_the_end_are_dropped_and_the_answer_ends_without_the_engines_word() -> None:
    answer = ResumableAnswer(request(max_new_tokens=2), LIMITS)
    answer.next_attempt()
    progress = answer.accept(TokenChunk(0, 0, (50, 51, 52, 53)))
    assert progress is not None
    assert progress.token_ids == (50, 51)
    assert progress.finish_reason == {"type": "length", "length": 2}
    assert answer.meta()["completion_tokens"] == 2


def test_the_length_reported_is_the_whole_answers() -> None:
    answer = answer_after(3, request(max_new_tokens=None))
    answer.next_attempt()
    last = answer.accept(TokenChunk(1, 3, (53, 54), finish_reason={"type": "length", "length": 2}))
    assert last is not None
    assert last.finish_reason == {"type": "length", "length": 5}


def test_an_abort_by_the_engine_is_passed_on() -> None:
    abort = {"type": "abort", "message": "out of memory", "status_code": 500}
    answer = answer_after(3, request())
    last = answer.accept(TokenChunk(0, 3, (), finish_reason=abort))
    assert last is not None
    assert last.finish_reason == abort


def test_a_request_with_state_starts_again_while_nothing_is_out_and_never_after() -> None:
    answer = ResumableAnswer(request(regex="a*"), LIMITS)
    assert answer.next_attempt().number == 0
    assert answer.next_attempt().number == 1
    answer.accept(TokenChunk(1, 0, (50,)))
    with pytest.raises(NotResumable, match=r"sets regex: the grammar would begin anew"):
        answer.next_attempt()


def test_log_probabilities_of_all_attempts_are_kept_in_order() -> None:
    asked = replace(request(max_new_tokens=4), return_logprob=True, top_logprobs_num=1)
    answer = answer_after(2, asked)
    for chunk in FakeEngine(tuple(range(50, 60))).run(answer.next_attempt(), (2,)):
        answer.accept(chunk)
    meta = answer.meta()
    assert meta["output_token_logprobs"] == [(-float(i), 50 + i, None) for i in range(4)]
    assert meta["output_top_logprobs"] == [[(-float(i), 50 + i, None)] for i in range(4)]
    assert meta["output_token_logprobs_length"] == 4
    assert meta["input_token_logprobs"] == []


def test_entries_of_log_probabilities_that_were_shown_stay_as_they_are_while_the_lists_grow() -> None:
    asked = replace(request(max_new_tokens=4), return_logprob=True, top_logprobs_num=1)
    answer = ResumableAnswer(asked, LIMITS, token_texts=lambda ids: [f"<{token}>" for token in ids])
    chunks = FakeEngine(tuple(range(50, 60))).run(answer.next_attempt())
    answer.accept(chunks[0])
    shown = answer.meta()
    before = list(shown["output_token_logprobs"])
    assert before == [(0.0, 50, "<50>")]
    for chunk in chunks[1:]:
        answer.accept(chunk)
    # The OpenAI classes slice the list that they were shown first from where they read last.
    assert shown["output_token_logprobs"][: len(before)] == before
    assert shown["output_token_logprobs"][len(before) :] == [(-float(i), 50 + i, f"<{50 + i}>") for i in range(1, 4)]
    assert shown["output_top_logprobs"][3] == [(-3.0, 53, "<53>")]
    assert shown["completion_tokens"] == 1


def test_a_stop_string_across_the_cut_ends_the_answer_though_no_engine_saw_it() -> None:
    tokens = tuple(encode_bytes("aSTOPb"))
    client = Client(request(stop=["STOP"]))
    for chunk in FakeEngine(tokens).run(client.answer.next_attempt())[:3]:
        client.take(chunk)
    for chunk in FakeEngine(tokens).run(client.answer.next_attempt(), (2,)):
        client.take(chunk)
    outcome = client.outcome()
    assert (outcome.text, outcome.finish_reason) == ("a", {"type": "stop", "matched": "STOP"})
    assert outcome.usage[1] == 5


@pytest.mark.parametrize("closing_chunk_comes", [True, False])
def test_text_that_was_held_back_is_shown_when_the_answer_ends(closing_chunk_comes: bool) -> None:
    tokens = tuple(encode_bytes("aSTO"))
    client = Client(request(stop=["STOP"], max_new_tokens=len(tokens)))
    chunks = FakeEngine(tokens).run(client.answer.next_attempt())
    for chunk in chunks[:-1]:
        client.take(chunk)
    assert client.shown == "a"
    client.take(chunks[-1] if closing_chunk_comes else replace(chunks[-1], finish_reason=None))
    if not closing_chunk_comes:
        client.read(client.answer.complete_without_worker())
    assert client.shown == "aSTO"
