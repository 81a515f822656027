"""One replica of three ranks, each an actor with its shard of target and drafter, answers as a single process does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.patience import wait_for
from deploy.local.rank_processes import ranks
from deploy.local.ray_client import completed, get, metric, same_answer, stream, wait_until_ready
from tests.e2e.servers import Pair
from tests.e2e_ray.questions import BODIES, LONG, MODEL, Answers


@pytest.fixture(scope="module")
def url(reference: object, http_port: int, pair: Pair) -> Iterator[str]:
    from ray import serve

    from workers.app import build_app

    config = {
        "model": pair.model,
        "draft": pair.draft,
        "served_model_name": MODEL,
        "dtype": "float32",
        "tp_size": 3,
        "cpus_per_rank": 0.5,
        "ddtree": {"budget": 16, "policy": "fixed", "check_ranks": True},
        "engine_args": {"max_total_tokens": 4096},
        "max_running_requests": 4,
        # The group is rebuilt under a running answer; on two cores that takes minutes.
        "first_token_timeout_s": 600.0,
        "request_deadline_s": 1800.0,
    }
    serve.run(build_app(config), name="group", route_prefix="/group")
    yield f"http://127.0.0.1:{http_port}/group"
    serve.delete("group")


def test_three_ranks_give_a_single_processs_answers(url: str, reference: Answers) -> None:
    assert len(ranks()) == 3
    assert all(same_answer(completed(url, body), other) for body, other in zip(BODIES, reference, strict=True))


@pytest.mark.slow
def test_death_of_one_rank_rebuilds_the_group_under_a_running_answer(url: str, reference: Answers) -> None:
    before, lost = ranks(), metric(url, "worker_lost_total")
    killed: list[int] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 5:
            killed.append(max(before))
            before[killed[0]].kill()
            wait_for(lambda: get(f"{url}/health")[0] != 200, "readiness turns false without any replica", 120)

    answer = stream(f"{url}/v1/chat/completions", BODIES[LONG], kill)
    assert killed
    assert metric(url, "worker_lost_total") > lost, "the answer was over before the kill"
    assert not answer.errors
    assert answer.text == reference[LONG]["choices"][0]["message"]["content"]
    wait_until_ready(url, 1)
    wait_for(lambda: len(ranks()) == 3, "three ranks", 60)
    assert not before.keys() & ranks().keys()
