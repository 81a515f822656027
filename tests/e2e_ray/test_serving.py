"""Real replicas: SmolLM2 with DDTREE in Ray actors gives a single process's answers, and survives its own death."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from questions import BODIES, MODEL, Answers
from rank_processes import busy_rank, detokenizers, ranks
from ray_client import completed, open_to_others, same_answer, stream, wait_until_ready
from servers import Pair


@pytest.fixture(scope="module")
def url(reference: object, http_port: int, pair: Pair) -> Iterator[str]:
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


def test_answers_are_a_single_processs(url: str, reference: Answers) -> None:
    assert all(same_answer(completed(url, body), other) for body, other in zip(BODIES, reference, strict=True))


def test_ranks_draft_trees(url: str) -> None:
    body = {**BODIES[0], "return_spec_tokens_details": True}
    details = completed(url, body)["sglext"]["spec_tokens_details"]
    assert details["spec_verify_ct"] < body["max_tokens"]


def test_rank_killed_in_the_middle_loses_and_repeats_nothing(url: str, reference: Answers) -> None:
    wait_until_ready(url, 2, 600)
    killed: list[int] = []

    def kill(num_chunks: int) -> None:
        if num_chunks >= 8 and not killed:
            killed.append(busy_rank().pid)
            os.kill(killed[0], signal.SIGKILL)

    answer = stream(f"{url}/v1/chat/completions", BODIES[1], kill)
    # Readiness has turned false while the group is gone, not at Serve's next look at it.
    wait_until_ready(url, 1, 3)
    whole = reference[1]["choices"][0]
    assert killed
    assert not answer.errors
    assert answer.text == whole["message"]["content"]
    assert answer.finish_reasons == [whole["finish_reason"]]
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == reference[1]["usage"]["completion_tokens"]


def test_killed_rank_comes_back_after_a_real_token_and_leaves_nothing(url: str, reference: Answers) -> None:
    wait_until_ready(url, 2, 600)
    assert len(ranks()) == 2
    assert len(detokenizers()) == 2
    assert same_answer(completed(url, BODIES[2]), reference[2])


def test_nothing_listens_beyond_loopback(url: str) -> None:
    assert open_to_others() == set()


def test_stop_leaves_no_process_and_no_placement_group(http_port: int, pair: Pair, url: str) -> None:
    """Last in this file: takes the replicas down."""
    import ray
    from ray import serve

    serve.delete("real")
    deadline = time.monotonic() + 120
    while ranks() or detokenizers():
        assert time.monotonic() < deadline, f"left behind: {ranks()} {detokenizers()}"
        time.sleep(0.5)
    groups = ray.util.placement_group_table().values()
    assert [group for group in groups if group["state"] != "REMOVED"] == []
