"""Rounds on keys and values that were not made in one go: they answer, draft and accept what a cold run does.

One server with pages of 16 tokens, a small pool, chunks of 32 tokens that running requests are mixed into, priorities
and streaming sessions. A server that caches no prefix, with pages of one token, says what each round has to draft.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.client import flush_cache, post
from tests.e2e.asking import ask, free_slots, rounds_of
from tests.e2e.round_oracle import Round, RoundOracle, rounds_by_request
from tests.e2e.servers import Server

CONTEXT_LEN = 192
FLAGS = (
    *("--page-size", "16", "--chunked-prefill-size", "32", "--enable-mixed-chunk", "--max-total-tokens", "512"),
    *("--enable-streaming-session", "--enable-priority-scheduling", "--schedule-conservativeness", "0"),
    *("--max-running-requests", "4", "--context-length", str(CONTEXT_LEN)),
)
_ids = itertools.count()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Server]:
    with serve("DDTREE", 16, *FLAGS) as started:
        yield started


@pytest.fixture(scope="module")
def oracle(serve: Callable[..., Any]) -> Iterator[RoundOracle]:
    with serve("DDTREE", 16, "--disable-radix-cache") as started:
        yield RoundOracle(started)


@pytest.fixture(scope="module")
def free_at_start(server: Server) -> int:
    return free_slots(server)


@pytest.fixture(autouse=True)
def _empty_cache(server: Server, free_at_start: int) -> None:
    flush_cache(server.url)


@dataclass(frozen=True)
class Answered:
    """A request with its id and its answer."""

    prompt: tuple[int, ...]
    request_id: str
    answer: dict[str, Any]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return (*self.prompt, *self.answer["output_ids"])


def prompt_ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(200 + (13 * i * i + 31 * seed + 7 * i * seed) % 700 for i in range(length))


def send(server: Server, prompt: Sequence[int], max_new_tokens: int, **body: Any) -> Answered:
    request_id = f"reused-{next(_ids)}"
    answer = ask(server.url, prompt, max_new_tokens, ignore_eos=True, body={"rid": request_id, **body})
    return Answered(tuple(prompt), request_id, answer)


def wait_for_round(server: Server, seen: Callable[[dict[str, Any]], bool]) -> None:
    """Until the server has run a round of which `seen` says so; asked of each round from now on, at least."""
    before, deadline = len(whole_lines(server.trace)), time.monotonic() + 60
    while not any(seen(json.loads(line)) for line in whole_lines(server.trace)[before:]):
        assert time.monotonic() < deadline, "no such round in a minute"
        time.sleep(0.02)


def whole_lines(file: Path) -> list[str]:
    """Those of a file that is written to."""
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def check(oracle: RoundOracle, plain: Server, server: Server, answered: Sequence[Answered]) -> list[list[Round]]:
    """Tokens as plain decoding's, each round as the cold one behind the same tokens; the rounds of each request."""
    by_request = rounds_by_request(server)
    for one in answered:
        expected = ask(plain.url, one.prompt, len(one.answer["output_ids"]), ignore_eos=True)
        assert one.answer["output_ids"] == expected["output_ids"]
        rounds = by_request[one.request_id]
        cold = oracle.rounds_after(one.prompt, one.answer["output_ids"], [found.prefix_len for found in rounds])
        for found, expected_round in zip(rounds, cold, strict=True):
            # As a set: the batch's shape decides in which of two orders nodes of nearly equal probability come.
            assert sorted(found.tree) == sorted(expected_round.tree)
            left = len(one.tokens) - 1 - found.prefix_len
            assert min(found.commit_len, left) == min(expected_round.commit_len, left)
    return [by_request[one.request_id] for one in answered]


def tokens_of_prefills(one: Answered, rounds: Sequence[Round]) -> int:
    """Tokens of an answer that no round has emitted."""
    last = rounds[-1].prefix_len + min(rounds[-1].commit_len, len(one.tokens) - 1 - rounds[-1].prefix_len)
    assert last == len(one.tokens) - 1
    return len(one.answer["output_ids"]) - sum(one.commit_len for one in rounds[:-1]) - (last - rounds[-1].prefix_len)


def test_prefix_hit_in_the_middle_of_a_page(server: Server, plain: Server, oracle: RoundOracle) -> None:
    first = send(server, prompt_ids(75, 1), 32)
    longer = (*first.tokens, *prompt_ids(9, 2))
    hits = [send(server, longer, 24) for _ in range(2)]
    assert [hit.answer["meta_info"]["cached_tokens"] for hit in hits] == [96, 112]
    check(oracle, plain, server, [first, *hits])


def test_two_answers_to_one_prompt(server: Server, plain: Server, oracle: RoundOracle) -> None:
    prompt, before = prompt_ids(70, 3), set(rounds_by_request(server))
    answers: Any = ask(server.url, prompt, 20, ignore_eos=True, n=2)  # a list, for n > 1
    new = [request_id for request_id in rounds_by_request(server) if request_id not in before]
    assert len(new) == 2
    pairs = zip(new, answers, strict=True)
    check(oracle, plain, server, [Answered(prompt, request_id, answer) for request_id, answer in pairs])


def test_running_requests_take_part_in_chunks(server: Server, plain: Server, oracle: RoundOracle) -> None:
    prompts = [prompt_ids(20, 4), prompt_ids(100, 5), prompt_ids(70, 6)]
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(send, server, prompts[0], 48)]
        wait_for_round(server, lambda line: line["batch_size"] == 1)
        running += [pool.submit(send, server, prompt, 16) for prompt in prompts[1:]]
        answered = [one.result() for one in running]
    rounds = check(oracle, plain, server, answered)
    # The first token comes with the request's own prefill.
    assert tokens_of_prefills(answered[0], rounds[0]) > 1, "nothing was mixed"


@pytest.mark.parametrize("options", [{"regex": "[a-z ]{200,400}"}, {"repetition_penalty": 1.3, "ignore_eos": True}])
def test_a_request_with_a_state_waits_for_chunks(options: dict[str, Any], server: Server, plain: Server) -> None:
    """A prefill would sample it from what the scheduler knows of its state, with overlap a round old."""
    prompt, request_id = prompt_ids(20, 7), f"state-{next(_ids)}"
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, server.url, prompt, 40, body={"rid": request_id}, **options)
        wait_for_round(server, lambda line: request_id in line["request_ids"])
        pool.submit(send, server, prompt_ids(100, 8), 4).result()
        answered = Answered(prompt, request_id, running.result())
    assert answered.answer["output_ids"] == ask(plain.url, prompt, 40, **options)["output_ids"]
    assert tokens_of_prefills(answered, rounds_by_request(server)[request_id]) == 1


def test_preemption_by_priority(server: Server, plain: Server, oracle: RoundOracle) -> None:
    prompts = [prompt_ids(20 + 9 * i, 20 + i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        low = [pool.submit(send, server, prompt, 40, priority=0) for prompt in prompts[:4]]
        wait_for_round(server, lambda line: line["batch_size"] == 4)
        high = [pool.submit(send, server, prompt, 12, priority=100) for prompt in prompts[4:]]
        answered = [one.result() for one in (*low, *high)]
    assert any(was_left_out(server, one.request_id) for one in answered[:4]), "nothing was preempted"
    check(oracle, plain, server, answered)


def was_left_out(server: Server, request_id: str) -> bool:
    """Whether rounds without the request came between its own."""
    own = [index for index, line in enumerate(rounds_of(server.trace)) if request_id in line["request_ids"]]
    return len(own) < own[-1] - own[0] + 1


LETTERS, NUM_LETTERS = "[a-z ]{%d}\\.", 240
RETRACTED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.15, "frequency_penalty": 0.3},
    "under a grammar": {"regex": LETTERS % NUM_LETTERS},
}
# With `ignore_eos` SGLang sets a request's whole length aside when it is admitted (schedule_policy.py,
# `_get_running_request_total_token_offset`), so that the pool suffices for all. A ban of the end token sets none aside.
NO_END = {"logit_bias": {"0": -100.0, "2": -100.0}}
WITH_TEXTS = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}


Neighbours = list[tuple[tuple[int, ...], list[int]]]


@pytest.fixture(scope="module")
def neighbours(plain: Server) -> Neighbours:
    """Prompts and answers of three long requests, which fill three quarters of the pool."""
    prompts = [prompt_ids(24 + 3 * i, 90 + i) for i in range(3)]
    return [(prompt, ask(plain.url, prompt, 110, **NO_END)["output_ids"]) for prompt in prompts]


def retracted(server: Server, neighbours: Neighbours, request: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request that its neighbours leave no room: it has the fewest tokens when the pool is full."""
    with ThreadPoolExecutor(3) as pool:
        beside = [pool.submit(ask, server.url, prompt, 110, **NO_END) for prompt, _ in neighbours]
        wait_for_round(server, lambda line: len(line["prefix_lens"]) == 3 and sum(line["prefix_lens"]) > 180)
        answer = request()
        assert [one.result()["output_ids"] for one in beside] == [tokens for _, tokens in neighbours]
    assert answer["meta_info"]["num_retractions"] >= 1
    return answer


def check_rest(
    server: Server,
    oracle: RoundOracle,
    one: Answered,
    asked_behind: Callable[[int], dict[str, Any]] = lambda _: {},
) -> None:
    """Each round behind the retraction has a cold server's tree, and commits what of the answer is in it.

    `asked_behind` says by what a request for the rest is sampled, behind so many tokens of the answer.
    """
    found = rounds_behind_a_retraction(server, one.request_id)
    assert len(found) > 3
    for mine in found:
        sampling = asked_behind(mine.prefix_len - len(one.prompt))
        cold = oracle.round_behind(one.tokens[: mine.prefix_len], **sampling)
        assert sorted(mine.tree) == sorted(cold.tree)
        assert mine.commit_len == mine.agreed(one.tokens[mine.prefix_len + 1 :])


@pytest.mark.parametrize("kind", RETRACTED)
def test_a_request_that_was_retracted_goes_on_as_if_it_had_not_been(
    kind: str, neighbours: Neighbours, server: Server, plain: Server, oracle: RoundOracle
) -> None:
    prompt, request_id = prompt_ids(26, 95), f"retracted-{next(_ids)}"
    has_grammar = "regex" in RETRACTED[kind]
    sampling = {**({} if has_grammar else NO_END), **RETRACTED[kind]}
    body = {"rid": request_id, **WITH_TEXTS}
    answer = retracted(server, neighbours, lambda: ask(server.url, prompt, 75, body=body, **sampling))
    expected = ask(plain.url, prompt, 75, body=WITH_TEXTS, **sampling)
    assert answer["output_ids"] == expected["output_ids"]
    assert answer["meta_info"]["finish_reason"] == expected["meta_info"]["finish_reason"]
    for name in ("output_token_logprobs", "output_top_logprobs"):
        assert numbers(answer["meta_info"][name]) == pytest.approx(numbers(expected["meta_info"][name]), abs=1e-3)
    texts = [text for _, _, text in expected["meta_info"]["output_token_logprobs"]]

    def asked_behind(done: int) -> dict[str, Any]:
        if has_grammar:
            return {"regex": LETTERS % (NUM_LETTERS - len("".join(texts[:done])))}
        # A tree hangs on its root, which a request without the penalties so far would choose otherwise.
        return {"logit_bias": {str(expected["output_ids"][done]): 100.0}}

    check_rest(server, oracle, Answered(prompt, request_id, answer), asked_behind)


def numbers(logprobs: Any) -> list[float]:
    """Log-probabilities and tokens of a list of entries, or of lists of them, without the texts."""
    if not isinstance(logprobs, list):
        return [] if isinstance(logprobs, str) or logprobs is None else [float(logprobs)]
    return [number for entry in logprobs for number in numbers(entry)]


def rounds_behind_a_retraction(server: Server, request_id: str) -> list[Round]:
    """The request's rounds since the first time that it was left out of one, but for the last."""
    lines = rounds_of(server.trace)
    own = [index for index, line in enumerate(lines) if request_id in line["request_ids"]]
    resumed = next(place for place, (one, two) in enumerate(itertools.pairwise(own)) if two > one + 1) + 1
    return rounds_by_request(server)[request_id][resumed:-1]


@pytest.mark.parametrize("length", [100, 33])
def test_a_prompt_of_several_chunks_is_answered_under_its_grammar(length: int, server: Server, plain: Server) -> None:
    """With its log-probabilities and the grammar's end, beside one that decodes meanwhile."""
    sampling = {"regex": "[a-z ]{30}\\."}
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(send, server, prompt_ids(20, 96), 40)
        wait_for_round(server, lambda line: line["batch_size"] == 1)
        mine, reference = (
            ask(one.url, prompt_ids(length, 97), 60, body=WITH_TEXTS, **sampling) for one in (server, plain)
        )
        beside.result()
    assert mine["output_ids"] == reference["output_ids"]
    assert (
        mine["meta_info"]["finish_reason"] == reference["meta_info"]["finish_reason"] == {"type": "stop", "matched": 2}
    )
    logprobs = [numbers(one["meta_info"]["output_token_logprobs"]) for one in (mine, reference)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


def test_neighbours_at_the_end_of_the_context(server: Server, plain: Server, oracle: RoundOracle) -> None:
    """The last pages that a round reserves end past the context, in rows of the request table."""
    prompts = [prompt_ids(CONTEXT_LEN - 24 + i, 80 + i) for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answered = list(pool.map(lambda prompt: send(server, prompt, CONTEXT_LEN - len(prompt)), prompts))
    assert all(len(one.tokens) >= CONTEXT_LEN - 2 for one in answered)
    check(oracle, plain, server, answered)


class Session:
    """A session of a server: each turn goes on behind the one before."""

    def __init__(self, server: Server, streaming: bool) -> None:
        self.server, self.streaming = server, streaming
        self.name = post(server.url, "/open_session", {"capacity_of_str_len": 4096, "streaming": streaming})
        self._last: str | None = None

    def turn(
        self, ids: Sequence[int], max_new_tokens: int, where: dict[str, Any] | None = None, **sampling: Any
    ) -> Any:
        """The answer; `where` says where in the session it goes on, if not behind its last token."""
        request_id = f"turn-{next(_ids)}"
        # A streaming session has one place to go on at.
        params = {"id": self.name, **({} if self.streaming else {"rid": self._last}), **(where or {})}
        body = {"rid": request_id, "session_params": params}
        self._last = request_id
        return ask(self.server.url, ids, max_new_tokens, body=body, **sampling)

    def close(self) -> None:
        post(self.server.url, "/close_session", {"session_id": self.name})


@pytest.mark.parametrize("streaming", [True, False])
def test_turns_of_a_session(streaming: bool, server: Server, plain: Server, oracle: RoundOracle) -> None:
    """Answers that end on a round's last token and within a round; some turns bring a single token."""
    session, answered = Session(server, streaming), []
    history: tuple[int, ...] = ()
    for seed, (length, max_new_tokens) in enumerate([(50, 2), (1, 23), (5, 24), (1, 25), (40, 9)]):
        new = prompt_ids(length, 30 + seed)
        answer = session.turn(new, max_new_tokens, ignore_eos=True)
        answered.append(Answered((*history, *new), answer["meta_info"]["id"], answer))
        history = answered[-1].tokens
    session.close()
    check(oracle, plain, server, answered)


STOPS: tuple[dict[str, Any], ...] = (
    {"stop_token_ids": [28, 30, 281]},
    {"stop": [" the", ".\n"]},
    {},
    {"stop": ["a"]},
)


def stopped_turns(session: Session) -> list[tuple[Any, ...]]:
    """Turns that end by a stop token, stop strings and the length, each behind the one before."""
    found = []
    for seed, sampling in enumerate(STOPS):
        answer = session.turn(prompt_ids(20, 40 + seed), 24, **sampling)
        found.append((answer["output_ids"], answer["text"], answer["meta_info"]["finish_reason"]))
    session.close()
    return found


@pytest.mark.parametrize("streaming", [True, False])
def test_a_turn_that_stops_leaves_behind_what_plain_decoding_does(
    streaming: bool, server: Server, plain: Server
) -> None:
    assert stopped_turns(Session(server, streaming)) == stopped_turns(Session(plain, False))


def test_offset_and_dropped_output_are_plain_decodings(server: Server, plain: Server) -> None:
    def answers(where: Server) -> list[list[int]]:
        session = Session(where, False)
        turns = [
            session.turn(prompt_ids(30, 50), 20, ignore_eos=True),
            session.turn(prompt_ids(6, 51), 20, {"offset": 37}, ignore_eos=True),
            session.turn(prompt_ids(6, 52), 20, {"drop_previous_output": True}, ignore_eos=True),
        ]
        session.close()
        return [one["output_ids"] for one in turns]

    assert answers(server) == answers(plain)


def test_an_aborted_turn_is_as_if_it_had_not_been(server: Server, plain: Server, oracle: RoundOracle) -> None:
    session = Session(server, True)
    first = session.turn(prompt_ids(40, 60), 20, ignore_eos=True)
    request_id = f"turn-{next(_ids)}"
    body = {"rid": request_id, "session_params": {"id": session.name}}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server.url, prompt_ids(8, 61), 110, ignore_eos=True, body=body)
        wait_for_round(server, lambda line: request_id in line["request_ids"])
        post(server.url, "/abort_request", {"rid": request_id})
        aborted = running.result()
    assert aborted["meta_info"]["finish_reason"]["type"] == "abort"
    assert len(aborted["output_ids"]) > 1
    answer = session.turn(prompt_ids(8, 62), 20, ignore_eos=True)
    session.close()
    history = (*prompt_ids(40, 60), *first["output_ids"], *prompt_ids(8, 62))
    check(oracle, plain, server, [Answered(history, answer["meta_info"]["id"], answer)])


def test_every_slot_is_given_back(server: Server, free_at_start: int) -> None:
    assert free_slots(server) == free_at_start
    assert "memory leak" not in server.log.read_text(errors="replace")
