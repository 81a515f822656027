"""One replica of three ranks, each an actor with its shard of the target and its drafter: a single server's answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from ray_client import completed, get, stream, wait_until_ready
from servers import Pair

MODEL = "smol"
BODIES = [
    {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24}
    for text in ("Why is the sky blue?", "Name three colours.")
]


def rank_pids() -> set[int]:
    found = set()
    for process in psutil.process_iter():
        try:
            if any("RankActor" in word for word in process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def expected(reference: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return reference(BODIES, "--tp-size", "3")


@pytest.fixture(scope="module")
def url(expected: object, http_port: int, pair: Pair) -> Iterator[str]:
    from ray import serve

    from workers.app import build_app

    config = {
        "model": pair.model,
        "draft": pair.draft,
        "served_model_name": MODEL,
        "dtype": "float32",
        "tp_size": 3,
        "cpus_per_rank": 0.5,
        "ddtree": {"budget": 16, "check_ranks": True},
        "engine_args": {"max_total_tokens": 4096},
        "max_running_requests": 4,
        # The group is rebuilt under a running answer; on two cores that takes minutes.
        "first_token_timeout_s": 600.0,
    }
    serve.run(build_app(config), name="group", route_prefix="/group")
    yield f"http://127.0.0.1:{http_port}/group"
    serve.delete("group")


def test_three_ranks_give_a_single_servers_answers(url: str, expected: list[dict[str, Any]]) -> None:
    assert len(rank_pids()) == 3
    for body, other in zip(BODIES, expected, strict=True):
        answer = completed(url, body)
        assert answer["choices"][0]["message"] == other["choices"][0]["message"]
        assert answer["usage"]["completion_tokens"] == other["usage"]["completion_tokens"]


def test_death_of_one_rank_rebuilds_the_group_under_a_running_answer(url: str, expected: list[dict[str, Any]]) -> None:
    before = rank_pids()
    unready: list[int] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 5:
            os.kill(max(before), signal.SIGKILL)
            while get(f"{url}/health")[0] == 200:
                time.sleep(0.05)
            unready.append(num_chunks)

    answer = stream(f"{url}/v1/chat/completions", BODIES[0], kill)
    assert unready, "readiness stayed true without any replica"
    assert not answer.errors
    assert answer.text == expected[0]["choices"][0]["message"]["content"]
    wait_until_ready(url, 1, 600)
    after = rank_pids()
    assert len(after) == 3
    assert not before & after
