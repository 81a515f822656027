"""What a rank's actor is started with; that SGLang's Ray engine is the one that we know."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from workers.replicas import rank_actor
from workers.replicas.rank_actor import RankActorClass, RankPlacement, rank_environment, rank_options

OPTIONS = {"num_gpus": 1, "num_cpus": 0, "name": "rank0"}


def test_rank_takes_a_gpu_only_if_its_bundle_has_one() -> None:
    assert rank_options(OPTIONS, {"CPU": 1, "GPU": 2}, RankPlacement(), {})["num_gpus"] == 1
    assert rank_options(OPTIONS, {"CPU": 1}, RankPlacement(), {})["num_gpus"] == 0


def test_rank_books_its_fraction_of_cpus_and_keeps_its_name() -> None:
    options = rank_options(OPTIONS, {"CPU": 1}, RankPlacement(cpus_per_rank=0.25), {})
    assert (options["num_cpus"], options["name"]) == (0.25, "rank0")


def test_rank_gets_the_engines_variables_and_no_secret() -> None:
    given = {"DDTREE_CONFIG": "{}", "SGLANG_PLATFORM": "x", "DDTREE_API_KEY": "k", "HF_TOKEN": "t", "HOME": "/"}
    kept = rank_environment(given | {"OMP_NUM_THREADS": "2"})
    assert kept.pop("DDTREE_OWNER_PID") == str(os.getpid())
    assert kept == {
        "DDTREE_CONFIG": "{}",
        "SGLANG_PLATFORM": "x",
        "OMP_NUM_THREADS": "2",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }


def test_rank_that_books_no_cpu_still_computes_on_the_nodes_cores() -> None:
    assert int(rank_environment({})["OMP_NUM_THREADS"]) >= 1


def test_actor_class_looks_its_bundle_up() -> None:
    seen = {}
    stock = SimpleNamespace(options=lambda **options: seen.update(options))
    group = SimpleNamespace(bundle_specs=[{"CPU": 1, "GPU": 1}, {"CPU": 2}])
    strategy = SimpleNamespace(placement_group=group, placement_group_bundle_index=1)
    RankActorClass(stock, RankPlacement(0.5)).options(**OPTIONS, scheduling_strategy=strategy)
    assert (seen["num_gpus"], seen["num_cpus"]) == (0, 0.5)


@pytest.mark.sglang
def test_installed_class_is_a_subclass_of_sglangs_actor_with_a_second_thread() -> None:
    ray = pytest.importorskip("ray")
    from sglang.srt.ray.scheduler_actor import SchedulerActor

    ours = rank_actor._rank_actor_class(SchedulerActor)
    assert isinstance(ours, ray.actor.ActorClass)
    assert issubclass(ours.__ray_actor_class__, SchedulerActor.__ray_actor_class__)
    assert ours.__ray_actor_class__.ping.__ray_concurrency_group__ == "control"
