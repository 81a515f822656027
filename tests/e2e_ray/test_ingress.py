"""The ingress on a real Ray Serve, over replicas without an engine: faults, back-pressure, sockets, in seconds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_client import KEY_VARIABLE, Streamed, get, open_to_others, post, stream, wait_until_ready
from servers import Pair

PROMPT = {"model": "toy", "messages": [{"role": "user", "content": "Count."}], "temperature": 0}


@dataclass(frozen=True)
class Toy:
    url: str
    journal: Path

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def worker_of_newest(self) -> int:
        return next(int(note["pid"]) for note in reversed(self.notes()) if note["what"] == "started")

    def metric(self, name: str) -> float:
        lines = get(f"{self.url}/metrics")[1].splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"ddtree_ingress_{name} "))


@pytest.fixture(scope="module")
def toy(http_port: int, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    from ray import serve
    from toy_replica import ToyReplica

    from workers.app import build_ingress
    from workers.config import WorkerConfig

    config = WorkerConfig(
        model=pair.model, draft=pair.draft, served_model_name="toy", stall_timeout_s=3.0, api_key_env=KEY_VARIABLE
    )
    journal = tmp_path_factory.mktemp("toy") / "journal.jsonl"
    serve.run(build_ingress(config, ToyReplica.bind(0.5, 0.05, journal)), name="toy", route_prefix="/toy")
    return Toy(f"http://127.0.0.1:{http_port}/toy", journal)


def chat(toy: Toy, num_tokens: int, at_chunk: Callable[[int], None] | None = None) -> Streamed:
    wait_until_ready(toy.url, 2)
    return stream(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": num_tokens}, at_chunk)


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> Streamed:
    return chat(toy, 40)


def test_answer_is_the_replicas_tokens_as_text_with_their_number(undisturbed: Streamed, pair: Pair) -> None:
    from toy_replica import expected_tokens
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.model)
    assert undisturbed.text == tokenizer.decode(expected_tokens(40))
    assert undisturbed.finish_reasons == ["length"]
    assert undisturbed.usage is not None
    assert undisturbed.usage["completion_tokens"] == 40


def test_replica_killed_in_the_middle_loses_and_repeats_nothing(toy: Toy, undisturbed: Streamed) -> None:
    lost = toy.metric("worker_lost_total")

    def kill(num_chunks: int) -> None:
        if num_chunks == 10:
            os.kill(toy.worker_of_newest(), signal.SIGKILL)

    assert chat(toy, 40, kill) == undisturbed
    assert toy.metric("worker_lost_total") == lost + 1
    assert toy.metric("resumed_total") >= 1


def test_replica_killed_before_its_first_token_is_replaced(toy: Toy, undisturbed: Streamed) -> None:
    wait_until_ready(toy.url, 2)
    known = len(toy.notes())

    def kill() -> None:
        while len(toy.notes()) == known:
            time.sleep(0.02)
        os.kill(toy.worker_of_newest(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    answer = chat(toy, 40)
    killer.join()
    assert answer == undisturbed
    assert len({note["pid"] for note in toy.notes()[known:]}) == 2


def test_hanging_replica_is_left_after_the_stall_timeout(toy: Toy, undisturbed: Streamed) -> None:
    stopped: list[int] = []

    def stop(num_chunks: int) -> None:
        if num_chunks == 10 and not stopped:
            stopped.append(toy.worker_of_newest())
            os.kill(stopped[0], signal.SIGSTOP)

    wait_until_ready(toy.url, 2)
    started = time.monotonic()
    try:
        answer = chat(toy, 40, stop)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert answer == undisturbed
    # Stalls for three seconds, once: the second attempt is not sent to the hanging replica again.
    assert time.monotonic() - started < 30


def test_answer_that_may_not_go_on_ends_with_an_error_event(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)

    def kill(num_chunks: int) -> None:
        if num_chunks == 5:
            os.kill(toy.worker_of_newest(), signal.SIGKILL)

    body = {**PROMPT, "max_tokens": 40, "presence_penalty": 0.5}
    answer = stream(f"{toy.url}/v1/chat/completions", body, kill)
    assert [error["type"] for error in answer.errors] == ["worker_lost"]
    assert "penalt" in answer.errors[0]["message"]


def test_full_replicas_answer_429_with_a_time_to_come_back(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)

    def ask(_: int) -> tuple[int, str | None]:
        try:
            with post(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": 40}) as response:
                return int(response.status), None
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Retry-After"]

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    statuses = [status for status, _ in answers]
    assert all(int(wait or 0) >= 1 for status, wait in answers if status == 429)
    # How many are served depends on who comes when a place is free again; nobody gets anything else.
    assert statuses.count(200) >= 1
    assert statuses.count(429) >= 1
    assert set(statuses) == {200, 429}
    assert toy.metric("rejected_total") == statuses.count(429)


def test_client_that_leaves_stops_the_replica(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)
    response = post(f"{toy.url}/v1/chat/completions", {**PROMPT, "max_tokens": 400, "stream": True})
    response.readline()
    response.close()
    deadline = time.monotonic() + 30
    while toy.notes()[-1]["what"] != "cancelled":
        assert time.monotonic() < deadline, "the replica works on for nobody"
        time.sleep(0.2)


def test_health_is_503_without_replicas_and_200_once_they_are_back(toy: Toy) -> None:
    wait_until_ready(toy.url, 2)
    replicas = [one for one in psutil.process_iter(["cmdline"]) if "ServeReplica:toy:replica" in str(one.info)]
    assert len(replicas) == 2
    for replica in replicas:
        replica.kill()
    deadline = time.monotonic() + 30
    while get(f"{toy.url}/health")[0] != 503:
        assert time.monotonic() < deadline, "nobody noticed that all replicas are gone"
        time.sleep(0.02)
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
