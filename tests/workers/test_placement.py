"""Bundles of a replica, as Ray is asked for them."""

from __future__ import annotations

from workers.app import placement_strategy, replica_bundles, uses_gpus
from workers.config import WorkerConfig


def config(**fields: object) -> WorkerConfig:
    return WorkerConfig(**{"model": "m", "draft": "d", "cpus_per_replica": 0.5, **fields})


def test_ranks_of_one_node_share_a_bundle_with_the_replica() -> None:
    assert replica_bundles(config(tp_size=2), with_gpus=True) == [{"CPU": 2.5, "GPU": 2.0}]


def test_cpu_ranks_may_take_fractions_and_ask_for_no_gpu() -> None:
    assert replica_bundles(config(tp_size=3, cpus_per_rank=0.25), with_gpus=False) == [{"CPU": 1.25}]


def test_each_node_gets_a_bundle_and_the_first_one_the_replica() -> None:
    bundles = replica_bundles(config(tp_size=4, nnodes=2, cpus_per_rank=1), with_gpus=True)
    assert bundles == [{"CPU": 2.5, "GPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}]
    assert placement_strategy(config(tp_size=4, nnodes=2)) == "STRICT_SPREAD"


def test_one_node_is_packed_unless_told_otherwise() -> None:
    assert placement_strategy(config()) == "STRICT_PACK"
    assert placement_strategy(config(placement_strategy="PACK")) == "PACK"


def test_gpus_are_taken_if_there_are_any_and_only_then() -> None:
    assert uses_gpus(config(), {"GPU": 2.0})
    assert not uses_gpus(config(), {"CPU": 2.0})
    assert not uses_gpus(config(device="cpu"), {"GPU": 2.0})
    assert uses_gpus(config(device="cuda"), {})
