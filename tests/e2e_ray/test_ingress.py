"""The ingress on a real Ray Serve, over replicas without an engine: faults, back-pressure, sockets."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.patience import wait_for
from deploy.local.ray_client import KEY_VARIABLE, Streamed, get, metric, open_to_others, post, stream, wait_until_ready
from tests.e2e.servers import Pair
from tests.e2e_ray.toy_folder import ToyFolder

PROMPT = {"model": "toy", "messages": [{"role": "user", "content": "Count."}], "temperature": 0}
# Tokens of an answer that is broken, where it waits for that, and what the client sees of it until it strikes.
NUM_TOKENS, HELD_AT, STRUCK_AT = 40, 20, 10
# Of `ToyReplica`: two replicas with three places each, and two more in the queue before them.
NUM_RUNNING, NUM_QUEUED = 6, 2


@dataclass(frozen=True)
class Toy:
    url: str
    folder: ToyFolder

    def metric(self, name: str) -> float:
        return metric(self.url, name)

    def wait_for_starts(self, number: int) -> None:
        wait_for(lambda: len(self.folder.started()) >= number, "a replica begins")

    def kill_newest(self) -> None:
        os.kill(self.folder.worker_of_newest(), signal.SIGKILL)


def run_toy(name: str, http_port: int, pair: Pair, path: Path, **patience: Any) -> Toy:
    """Replicas without an engine behind the real ingress, in an application of their own."""
    from ray import serve

    from tests.e2e_ray.toy_replica import ToyReplica
    from workers.app import build_ingress
    from workers.config import WorkerConfig

    config = WorkerConfig(
        model=pair.model, draft=pair.draft, served_model_name="toy", api_key_env=KEY_VARIABLE, **patience
    )
    # A replica that hangs is left to the ingress.
    replicas = ToyReplica.options(health_check_timeout_s=600)
    folder = ToyFolder(path)
    serve.run(build_ingress(config, replicas.bind(0.05, folder)), name=name, route_prefix=f"/{name}")
    return Toy(f"http://127.0.0.1:{http_port}/{name}", folder)


@pytest.fixture(scope="module")
def toy(http_port: int, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Only what dies is lost, however slow the machine is."""
    patience = {"first_token_timeout_s": 600.0, "stall_timeout_s": 600.0, "request_deadline_s": 1800.0}
    return run_toy("toy", http_port, pair, tmp_path_factory.mktemp("toy"), **patience)


@pytest.fixture
def impatient(http_port: int, pair: Pair, tmp_path: Path) -> Iterator[Toy]:
    """Twenty seconds of silence mean a lost replica."""
    from ray import serve

    yield run_toy("impatient", http_port, pair, tmp_path, stall_timeout_s=20.0)
    serve.delete("impatient")


def chat(toy: Toy, num_tokens: int, at_chunk: Callable[[int], None] | None = None) -> Streamed:
    wait_until_ready(toy.url, 2)
    return stream(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": num_tokens}, at_chunk)


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> Streamed:
    return chat(toy, NUM_TOKENS)


def test_answer_is_the_replicas_tokens_as_text_with_their_number(undisturbed: Streamed, pair: Pair) -> None:
    from transformers import AutoTokenizer

    from tests.e2e_ray.toy_replica import expected_tokens

    tokenizer = AutoTokenizer.from_pretrained(pair.model)
    assert undisturbed.text == tokenizer.decode(expected_tokens(NUM_TOKENS))
    assert undisturbed.finish_reasons == ["length"]
    assert undisturbed.usage is not None
    assert undisturbed.usage["completion_tokens"] == NUM_TOKENS


def test_replica_killed_in_the_middle_loses_and_repeats_nothing(toy: Toy, undisturbed: Streamed) -> None:
    lost, resumed = toy.metric("worker_lost_total"), toy.metric("resumed_total")

    def kill(num_chunks: int) -> None:
        if num_chunks == STRUCK_AT:
            toy.kill_newest()

    with toy.folder.held(HELD_AT):
        assert chat(toy, NUM_TOKENS, kill) == undisturbed
    assert toy.metric("worker_lost_total") == lost + 1
    assert toy.metric("resumed_total") == resumed + 1


def test_replica_killed_before_its_first_token_is_replaced(toy: Toy, undisturbed: Streamed) -> None:
    wait_until_ready(toy.url, 2)
    known, lost = len(toy.folder.started()), toy.metric("worker_lost_total")

    with ThreadPoolExecutor(1) as pool, toy.folder.held(0):
        answer = pool.submit(chat, toy, NUM_TOKENS)
        toy.wait_for_starts(known + 1)
        toy.kill_newest()
        # For the second try too: it is Serve's own if the replica died before it could say that it took the request.
        toy.folder.release()
        assert answer.result(600) == undisturbed
    first, second = toy.folder.started()[known:]
    assert first["pid"] != second["pid"]
    assert second["attempt"] in (0, 1)
    assert toy.metric("worker_lost_total") == lost + second["attempt"]


def test_hanging_replica_is_left_after_the_stall_timeout(impatient: Toy, undisturbed: Streamed) -> None:
    stopped: list[int] = []

    def stop(num_chunks: int) -> None:
        if num_chunks == STRUCK_AT:
            stopped.append(impatient.folder.worker_of_newest())
            os.kill(stopped[0], signal.SIGSTOP)
            # From here on it is the stopped process alone that sends nothing.
            impatient.folder.release()

    wait_until_ready(impatient.url, 2)
    started = time.monotonic()
    try:
        with impatient.folder.held(HELD_AT):
            answer = chat(impatient, NUM_TOKENS, stop)
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert answer == undisturbed
    # One silence: the second attempt was not sent to the hanging replica again, which would have noted nothing.
    assert impatient.metric("worker_lost_total") == 1
    workers = {note["attempt"]: note["pid"] for note in impatient.folder.started()}
    assert sorted(workers) == [0, 1]
    assert workers[0] == stopped[0] != workers[1]
    assert time.monotonic() - started < 300


def test_answer_that_may_not_go_on_ends_with_an_error_event(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)

    def kill(num_chunks: int) -> None:
        if num_chunks == STRUCK_AT:
            toy.kill_newest()

    body = {**PROMPT, "max_tokens": NUM_TOKENS, "presence_penalty": 0.5}
    with toy.folder.held(HELD_AT):
        answer = stream(f"{toy.url}/v1/chat/completions", body, kill)
    assert [error["type"] for error in answer.errors] == ["worker_lost"]
    assert "penalt" in answer.errors[0]["message"]


def test_full_replicas_answer_429_with_a_time_to_come_back(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)
    known, rejected = len(toy.folder.started()), toy.metric("rejected_total")

    def ask() -> tuple[int, str | None]:
        try:
            with post(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": NUM_TOKENS}) as response:
                return int(response.status), None
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Retry-After"]

    with ThreadPoolExecutor(40) as pool, toy.folder.held(0):
        asked = []
        for number in range(NUM_RUNNING):
            asked.append(pool.submit(ask))
            toy.wait_for_starts(known + number + 1)
        # One by one, as Serve counts a request a moment after it has let it in. What is queued stays silent.
        while not any(one.done() for one in asked):
            assert len(asked) < 30, "no request got a 429"
            asked.append(pool.submit(ask))
            wait([asked[-1]], timeout=2.0)
        # Full, and nothing ends before it may: all others are turned away.
        others = [pool.submit(ask) for _ in range(10)]
        assert {one.result(300)[0] for one in others} == {429}
        assert len(toy.folder.started()) == known + NUM_RUNNING
    answers = [one.result() for one in (*asked, *others)]
    statuses = [status for status, _ in answers]
    assert all(int(retry_after or 0) >= 1 for status, retry_after in answers if status == 429)
    # No request got another status, and none got a 429 before all places were taken.
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= NUM_RUNNING + NUM_QUEUED
    assert toy.metric("rejected_total") == rejected + statuses.count(429)


def test_client_that_leaves_stops_the_replica(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)
    known = len(toy.folder.notes())
    # Minutes of tokens.
    response = post(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": 4000, "stream": True})
    response.readline()
    response.close()
    wait_for(
        lambda: "cancelled" in [note["what"] for note in toy.folder.notes()[known:]],
        "no replica works for a client that left",
    )


def test_health_is_503_without_replicas_and_200_once_they_are_back(toy: Toy) -> None:
    def replicas() -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if "ServeReplica:toy:replica" in str(one.info)]

    wait_until_ready(toy.url, 2)
    wait_for(lambda: len(replicas()) == 2, "two replicas, and none that is still ending")
    with toy.folder.closed():
        for replica in replicas():
            replica.kill()
        wait_for(lambda: get(f"{toy.url}/health")[0] == 503, "the ingress notices that all replicas are gone")
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": 4})
    assert refused.value.code == 503
    assert int(refused.value.headers["Retry-After"]) >= 1
    wait_until_ready(toy.url, 2)
    assert get(f"{toy.url}/health")[0] == 200


def test_models_and_bad_requests_are_answered_as_sglang_does(toy: Toy) -> None:
    assert [model["id"] for model in json.loads(get(f"{toy.url}/v1/models")[1])["data"]] == ["toy"]
    for body in ({"model": "toy"}, {**PROMPT, "temperature": -1}, {**PROMPT, "messages": []}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{toy.url}/v1/chat/completions", body)
        assert refused.value.code == 400


def test_without_the_key_only_health_is_answered(toy: Toy) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{toy.url}/v1/chat/completions", PROMPT, key="another")
    assert refused.value.code == 401
    assert get(f"{toy.url}/v1/models", key="")[0] == 401
    assert get(f"{toy.url}/health", key="")[0] == 200


def test_nothing_listens_beyond_loopback(toy: Toy) -> None:
    assert open_to_others() == set()
