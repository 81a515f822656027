"""The Ray Serve application: replicas that generate tokens, and an ingress that makes OpenAI answers of them.

    serve deploy CONFIG      with import_path: workers.app:build_app and the fields of `WorkerConfig` as args
    python -m workers serve  the same on a local cluster

A batch job deploys `build_replicas` alone.
"""

from __future__ import annotations

import os
from typing import Any

from ddtree_sglang.config import CONFIG_ENV, REQUESTS_BY_DEFAULT_ENV
from workers.config import WorkerConfig

REQUEST_ROUTER = "workers.cluster.request_router:AttemptRouter"
INGRESS_CPUS = 0.2


def build_app(args: dict[str, Any]) -> Any:
    """Serve's application builder.

    Raises:
        pydantic.ValidationError: `WorkerConfig` refuses the arguments.
    """
    config = WorkerConfig(**args)
    return build_ingress(config, build_replicas(config))


def build_ingress(config: WorkerConfig, replicas: Any) -> Any:
    """The ingress in front of a deployment that has `generate_tokens`."""
    from ray import serve

    from workers.http.ingress import Ingress

    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=config.num_ingresses,
        ray_actor_options={"num_cpus": INGRESS_CPUS, "runtime_env": {"env_vars": replica_environment(config)}},
        # Above what the replicas admit, so that their limits decide: an ingress only passes tokens on.
        max_ongoing_requests=4 * config.max_replicas * config.max_running_requests + config.max_queued_requests,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
    )
    return ingress.bind(config.model_dump(), replicas)


def build_replicas(config: WorkerConfig) -> Any:
    """The deployment of `DDTreeServer` replicas, bound to its configuration."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig

    from workers.replicas.replica import DDTreeServer

    llm_config = LLMConfig(
        model_loading_config={"model_id": config.name, "model_source": config.model},
        server_cls=DDTreeServer,
        engine_kwargs=config.server_args(),
    )
    with_gpus = uses_gpus(config, ray.cluster_resources())
    return serve.deployment(DDTreeServer, **replica_options(config, with_gpus)).bind(llm_config, config.model_dump())


def replica_options(config: WorkerConfig, with_gpus: bool) -> dict[str, Any]:
    """Deployment options of the replicas."""
    import ray
    from ray.serve.config import AutoscalingConfig, DeploymentActorConfig, RequestRouterConfig

    from workers.replicas.supervision import SUPERVISOR, Supervisor

    supervisor = DeploymentActorConfig(
        name=SUPERVISOR,
        actor_class=ray.remote(Supervisor),
        init_args=(config.max_replicas, config.restart_budget, config.restart_window_s),
        actor_options={"num_cpus": 0},
    )
    return {
        "name": "replica",
        "placement_group_bundles": replica_bundles(config, with_gpus),
        "placement_group_strategy": placement_strategy(config),
        "ray_actor_options": {
            "num_cpus": config.cpus_per_replica,
            "runtime_env": {"env_vars": replica_environment(config)},
        },
        "max_ongoing_requests": 2 * config.max_running_requests,
        "max_queued_requests": config.max_queued_requests,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            initial_replicas=config.min_replicas,
            target_ongoing_requests=config.ongoing_per_replica,
        ),
        "request_router_config": RequestRouterConfig(
            request_router_class=REQUEST_ROUTER,
            request_router_kwargs={"imbalanced_threshold": config.prefix_imbalance, "do_eviction": True},
        ),
        "deployment_actors": [supervisor],
        "health_check_period_s": config.health_check_period_s,
        # Longer than the replica's own limit, so that a replica without tokens ends itself and its ranks first.
        "health_check_timeout_s": config.health_check_timeout_s + 30.0,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "max_constructor_retry_count": config.restart_budget,
    }


def replica_environment(config: WorkerConfig) -> dict[str, str]:
    """Variables of a replica and its ranks: the deployer's, DDTREE's knobs, one thread per booked CPU."""
    from workers.replicas.rank_actor import rank_environment

    # Not the deployer's number of threads: `serve deploy` builds in a task without CPUs, where Ray sets it to 1.
    threads = {"OMP_NUM_THREADS": str(max(1, int(config.cpus_per_rank)))}
    # Written in either case: the deployer may itself run in a replica, whose variable would be inherited.
    by_default = "0" if "max_running_requests" in config.model_fields_set else "1"
    ours = {CONFIG_ENV: config.ddtree_json(), REQUESTS_BY_DEFAULT_ENV: by_default}
    return rank_environment({**os.environ, **threads}) | ours


def replica_bundles(config: WorkerConfig, with_gpus: bool) -> list[dict[str, float]]:
    """One bundle per node of a replica, which is how SGLang's `RayEngine` places its ranks (srt/ray/engine.py).

    The first bundle also holds the replica's own process. Example: two ranks with GPUs on one node, and half a CPU for
    the replica: `[{"CPU": 2.5, "GPU": 2}]`.
    """
    ranks = config.tp_size // config.nnodes
    bundles = []
    for node in range(config.nnodes):
        cpus = ranks * config.cpus_per_rank + (config.cpus_per_replica if node == 0 else 0.0)
        bundles.append({"CPU": cpus, **({"GPU": float(ranks)} if with_gpus else {})})
    return bundles


def placement_strategy(config: WorkerConfig) -> str:
    """The configured strategy; by default all on one node, or each bundle on a node of its own."""
    if config.placement_strategy is not None:
        return config.placement_strategy
    return "STRICT_PACK" if config.nnodes == 1 else "STRICT_SPREAD"


def uses_gpus(config: WorkerConfig, cluster_resources: dict[str, Any]) -> bool:
    """True if replicas book GPUs: always with device "cuda", and with "auto" if the cluster has any."""
    return config.device == "cuda" or (config.device == "auto" and float(cluster_resources.get("GPU", 0)) > 0)
