"""Every change that the Ray workers make to other packages' code."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_ARGS = "sglang.srt.server_args.ServerArgs"
_RAY_ENGINE = "sglang.srt.ray.engine"
_LAUNCH = "workers.replicas.rank_launch"

PLUGIN_PATCHES = (
    Patch(f"{_ARGS}.resolve_once", "after", "workers.plugin:install_if_asked", "with --use-ray, ranks are our actors"),
)

RANK_PATCHES = (
    Patch(
        f"{_RAY_ENGINE}.SchedulerActor",
        "assign",
        "workers.replicas.rank_actor:rank_actors",
        "stock actors load no plugins, want a GPU each, and answer nothing while they decode",
    ),
    Patch(
        f"{_RAY_ENGINE}.RayEngine._launch_scheduler_processes",
        "around",
        f"{_LAUNCH}:launch_on_this_platform",
        "without a GPU ranks get bundles of CPUs; the launcher does not wait for them",
    ),
    Patch(
        f"{_RAY_ENGINE}._validate_custom_placement_group",
        "around",
        f"{_LAUNCH}:check_bundles",
        "stock wants a GPU in each bundle",
    ),
)

RENDEZVOUS = Patch(
    "torch.distributed.rendezvous.TCPStore",
    "assign",
    "workers.cluster.loopback:loopback_tcp_store",
    "stock listens on every interface, whatever host it was given",
)

SERVE_PORT = Patch(
    "ray.serve._private.replica.add_port_to_grpc_server",
    "assign",
    "workers.cluster.loopback:loopback_grpc_port",
    "stock opens the port between deployments on every interface",
)

WORKER_PATCHES = (
    *PLUGIN_PATCHES,
    *RANK_PATCHES,
    RENDEZVOUS,
    SERVE_PORT,
    Patch(
        f"{_RAY_ENGINE}.RaySchedulerInitResult",
        "object",
        f"{_LAUNCH}:start_launching",
        "filled when the launch has ended",
        "wait_for_ready scheduler_infos scheduler_actors block_until_scheduler_exits all_child_pids",
    ),
)
