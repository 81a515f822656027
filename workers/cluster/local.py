"""A Ray cluster of this machine alone, on the loopback interface: `python -m workers` and the tests start it.

Ray replaces "127.0.0.1" by the address that other machines see, which opens its ports, and the engine's rendezvous, to
every machine on that network. `LOOPBACK` switches that off. A cluster of several machines is started by `ray start`,
deploy/ray or KubeRay, on a private network; this module only connects to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

LOOPBACK = {
    # "0" means a cluster of one machine; the only effect on Linux is that the node's address is the loopback one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The default for local clusters since Ray 2.59, set explicitly so that it does not depend on the version.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a second server on the same port starts without an error, and the kernel gives it half of the clients.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
    # Ray starts workers with niceness 15, behind everything else on the machine; a serving rank should not be.
    "RAY_worker_niceness": "0",
    # Serve's default is three tries of 5 s, too short to import Serve on two busy cores.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def start_local_cluster(num_cpus: float | None = None, num_gpus: float | None = None) -> dict[str, Any]:
    """Start Ray on this machine for this process, without a dashboard; returns what the cluster has.

    Args:
        num_cpus: CPUs that may be booked; default: the machine's. Booking reserves no cores, so more CPUs than there
            are can be given; the processes then share the cores.
        num_gpus: GPUs that may be booked; default: the machine's.
    """
    prepare_environment()
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        log_to_driver=False,
    )
    resources: dict[str, Any] = ray.cluster_resources()
    return resources


def prepare_environment() -> None:
    """Set the variables that Ray reads when it is imported, apart from those that the user has set.

    Raises:
        RuntimeError: Ray is imported already, so setting them would have no effect.
    """
    missing = {name: value for name, value in LOOPBACK.items() if name not in os.environ}
    if missing and "ray" in sys.modules:
        raise RuntimeError(
            f"Ray reads {sorted(missing)} when it is imported, which has happened; call prepare_environment before."
        )
    os.environ.update(missing)


def connect(address: str) -> dict[str, Any]:
    """Connect to a running cluster and return its resources; "auto": the one that this machine belongs to."""
    import ray

    ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": python_path()}}, log_to_driver=False)
    resources: dict[str, Any] = ray.cluster_resources()
    return resources


def python_path() -> str:
    """`PYTHONPATH` for actors, which start in other folders: this checkout first, then the variable's own entries."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
