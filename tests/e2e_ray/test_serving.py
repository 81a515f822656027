"""Real replicas: SmolLM2 with DDTREE in Ray actors gives a single process's answers, and survives its own death."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from ray_client import completed, open_to_others, stream, wait_until_ready
from servers import Pair

MODEL = "smol"
QUESTIONS = ("Why is the sky blue?", "Write a Python function that reverses a list.", "What is 17 + 25?")
BODIES = [
    {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 48}
    for text in QUESTIONS
]


def ranks() -> dict[int, float]:
    """CPU seconds of the rank processes of this machine, by pid."""
    found = {}
    for process in psutil.process_iter():
        try:
            if any("RankActor" in word for word in process.cmdline()):
                found[process.pid] = sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return found


def busy_rank() -> int:
    """The rank that decodes right now."""
    before = ranks()
    time.sleep(0.5)
    after = ranks()
    return max(after, key=lambda pid: after[pid] - before.get(pid, 0.0))


@pytest.fixture(scope="module")
def expected(reference: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return reference(BODIES)


@pytest.fixture(scope="module")
def url(expected: object, http_port: int, pair: Pair) -> Iterator[str]:
    """Two replicas of one rank each; started after the reference has stopped, for the memory's sake."""
    from ray import serve

    from workers.app import build_app

    config = {
        "model": pair.model,
        "draft": pair.draft,
        "served_model_name": MODEL,
        "dtype": "float32",
        "ddtree": {"budget": 16},
        "engine_args": {"max_total_tokens": 8192},
        "min_replicas": 2,
        "max_replicas": 2,
        "max_running_requests": 4,
        "cpus_per_rank": 1.0,
    }
    serve.run(build_app(config), name="real", route_prefix="/real")
    yield f"http://127.0.0.1:{http_port}/real"
    serve.delete("real")


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    parts = [(one["choices"][0]["message"]["content"], one["choices"][0]["finish_reason"]) for one in (answer, other)]
    numbers = [(one["usage"]["prompt_tokens"], one["usage"]["completion_tokens"]) for one in (answer, other)]
    return parts[0] == parts[1] and numbers[0] == numbers[1]


def test_answers_are_a_single_processs(url: str, expected: list[dict[str, Any]]) -> None:
    assert all(same(completed(url, body), other) for body, other in zip(BODIES, expected, strict=True))


def test_ranks_draft_trees(url: str) -> None:
    body = {**BODIES[0], "return_spec_tokens_details": True}
    details = completed(url, body)["sglext"]["spec_tokens_details"]
    assert details["spec_verify_ct"] < body["max_tokens"]


def test_rank_killed_in_the_middle_loses_and_repeats_nothing(url: str, expected: list[dict[str, Any]]) -> None:
    wait_until_ready(url, 2, 600)
    killed: list[int] = []

    def kill(num_chunks: int) -> None:
        if num_chunks >= 8 and not killed:
            killed.append(busy_rank())
            os.kill(killed[0], signal.SIGKILL)

    answer = stream(f"{url}/v1/chat/completions", BODIES[1], kill)
    whole = expected[1]["choices"][0]
    assert killed
    assert not answer.errors
    assert answer.text == whole["message"]["content"]
    assert answer.finish_reasons == [whole["finish_reason"]]
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == expected[1]["usage"]["completion_tokens"]


def test_killed_rank_comes_back_after_a_real_token_and_leaves_nothing(url: str, expected: list[dict[str, Any]]) -> None:
    wait_until_ready(url, 2, 600)
    assert len(ranks()) == 2
    detokenizers = [p for p in psutil.process_iter(["name"]) if "detokenizer" in (p.info["name"] or "")]
    assert len(detokenizers) == 2
    assert same(completed(url, BODIES[2]), expected[2])


def test_nothing_listens_beyond_loopback(url: str) -> None:
    assert open_to_others() == set()


def test_stop_leaves_no_process_and_no_placement_group(http_port: int, pair: Pair, url: str) -> None:
    """Last in this file: takes the replicas down."""
    import ray
    from ray import serve

    serve.delete("real")
    deadline = time.monotonic() + 120
    while ranks() or [p for p in psutil.process_iter(["name"]) if "detokenizer" in (p.info["name"] or "")]:
        assert time.monotonic() < deadline, f"left behind: {ranks()}"
        time.sleep(0.5)
    groups = ray.util.placement_group_table().values()
    assert [group for group in groups if group["state"] != "REMOVED"] == []
