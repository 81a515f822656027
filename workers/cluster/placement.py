"""Which resources a replica asks Ray for: pure functions from a configuration to bundles and options."""

from __future__ import annotations

from typing import Any

from workers.config import WorkerConfig


def replica_bundles(config: WorkerConfig, with_gpus: bool) -> list[dict[str, float]]:
    """One bundle per node of a replica, which is how SGLang's `RayEngine` places its ranks (srt/ray/engine.py).

    The replica's own process lives in the first bundle. Two ranks on one node with GPUs, half a CPU for the replica:
    `[{"CPU": 2.5, "GPU": 2}]`.
    """
    ranks = config.tp_size // config.nnodes
    bundles = []
    for node in range(config.nnodes):
        cpus = ranks * config.cpus_per_rank + (config.cpus_per_replica if node == 0 else 0.0)
        bundles.append({"CPU": cpus, **({"GPU": float(ranks)} if with_gpus else {})})
    return bundles


def placement_strategy(config: WorkerConfig) -> str:
    """The configured strategy; else all on one node, or each bundle on its own."""
    if config.placement_strategy is not None:
        return config.placement_strategy
    return "STRICT_PACK" if config.nnodes == 1 else "STRICT_SPREAD"


def uses_gpus(config: WorkerConfig, cluster_resources: dict[str, Any]) -> bool:
    """True if replicas take GPUs: as configured, or with "auto" when the cluster has any."""
    return config.device == "cuda" or (config.device == "auto" and float(cluster_resources.get("GPU", 0)) > 0)
