"""Real replicas on nodes of their own: SmolLM2 with DDTREE in Ray actors gives a single process's answers, and survives
the death of a rank and of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from deploy.local.patience import wait_for
from deploy.local.rank_processes import busy_rank, ranks, shared_files, wait_until_gone, wait_until_there
from deploy.local.ray_client import completed, metric, open_to_others, same_answer, serving, stream, wait_until_ready
from tests.e2e.servers import Pair
from tests.e2e_ray.nodes import Nodes
from tests.e2e_ray.questions import BODIES, LONG, MODEL, Answers

# Serve's own look at a replica; readiness has to turn false earlier.
HEALTH_CHECK_PERIOD_S = 60.0


@pytest.fixture(scope="module")
def nodes(reference: object) -> Iterator[Nodes]:
    """Three raylets; started after the reference has stopped, for the memory's sake."""
    nodes = Nodes(num_workers=2)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def url(nodes: Nodes, pair: Pair) -> Iterator[str]:
    """Two replicas of one rank each, one on each node."""
    from ray import serve

    from workers.app import build_app
    from workers.cluster.local import connect

    connect(nodes.address)

    config = {
        "model": pair.model,
        "draft": pair.draft,
        "served_model_name": MODEL,
        "dtype": "float32",
        "ddtree": {"budget": 16, "policy": "fixed"},
        "engine_args": {"max_total_tokens": 8192},
        "min_replicas": 2,
        "max_replicas": 2,
        "max_running_requests": 4,
        "cpus_per_rank": 2.0,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
    }
    with serving() as port:
        serve.run(build_app(config), name="real", route_prefix="/real")
        yield f"http://127.0.0.1:{port}/real"


def test_answers_are_a_single_processs(url: str, reference: Answers) -> None:
    assert all(same_answer(completed(url, body), other) for body, other in zip(BODIES, reference, strict=True))


def test_each_replica_is_on_a_node_of_its_own(url: str, nodes: Nodes) -> None:
    assert {nodes.worker_of(rank) for rank in ranks().values()} == set(nodes.workers)


def test_ranks_draft_trees(url: str) -> None:
    body = {**BODIES[0], "return_spec_tokens_details": True}
    details = completed(url, body)["sglext"]["spec_tokens_details"]
    assert details["spec_verify_ct"] < body["max_tokens"]


def check_broken_answer(
    url: str, strike: Callable[[psutil.Process], None], unready_within_s: float, reference: Answers
) -> None:
    """Strike at the rank that decodes in the middle of an answer, which is the undisturbed one all the same."""
    wait_until_ready(url, 2)
    lost = metric(url, "worker_lost_total")
    struck: list[psutil.Process] = []

    def at_chunk(num_chunks: int) -> None:
        if num_chunks >= 8 and not struck:
            struck.append(busy_rank())
            strike(struck[0])
            # Here, as the replica may be back before the answer is complete.
            wait_until_ready(url, 1, unready_within_s)

    answer = stream(f"{url}/v1/chat/completions", BODIES[LONG], at_chunk)
    whole = reference[LONG]["choices"][0]
    assert struck
    assert metric(url, "worker_lost_total") > lost, "the strike came too late, or hit another rank"
    assert not answer.errors
    assert answer.text == whole["message"]["content"]
    assert answer.finish_reasons == [whole["finish_reason"]]
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == reference[LONG]["usage"]["completion_tokens"]


def test_rank_killed_in_the_middle_loses_and_repeats_nothing(url: str, reference: Answers) -> None:
    # Readiness turns false while the group is gone, not at Serve's next look at it.
    check_broken_answer(url, psutil.Process.kill, HEALTH_CHECK_PERIOD_S / 2, reference)


def test_killed_rank_comes_back_after_a_real_token_and_leaves_nothing(url: str, reference: Answers) -> None:
    wait_until_ready(url, 2)
    wait_until_there(2, 2)
    assert same_answer(completed(url, BODIES[2]), reference[2])


@pytest.mark.slow
def test_node_lost_in_the_middle_loses_and_repeats_nothing(url: str, nodes: Nodes, reference: Answers) -> None:
    # Ray's head notices a lost node by missed heartbeats.
    check_broken_answer(url, lambda rank: nodes.lose(nodes.worker_of(rank)), 300, reference)
    nodes.add_worker()
    wait_until_ready(url, 2)
    assert same_answer(completed(url, BODIES[0]), reference[0])
    wait_until_there(2, 2)


def test_nothing_listens_beyond_loopback(url: str) -> None:
    assert open_to_others() == set()


def test_stop_leaves_no_process_no_placement_group_and_no_shared_memory(url: str, nodes: Nodes) -> None:
    """Last in this file: takes the replicas down."""
    import ray
    from ray import serve

    serve.delete("real")
    wait_until_gone(120)

    def groups() -> list[Any]:
        return [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]

    wait_for(lambda: not groups(), "no placement group is left", 60)
    named = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    assert not [name for name in named if "PrefixTree" in name], "the prefix router's tree outlived its application"
    # Semaphores are removed by Python's resource tracker, which ends after the processes that it belongs to.
    wait_for(lambda: shared_files() <= nodes.shared_files_before, "no shared memory is left", 60)
