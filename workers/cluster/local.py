"""A Ray cluster of this machine alone, on the loopback interface: what `python -m workers` and the tests start.

Ray turns "127.0.0.1" into the address that other machines see, and then its ports, the engine's rendezvous among them,
are open to whoever reaches the machine. `LOOPBACK` switches that off. A cluster of several machines is started by
`ray start`, deploy/ray or KubeRay, on a network of its own; this module only connects to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

LOOPBACK = {
    # Ray's own name for "a cluster of one machine"; its only effect on Linux is that the node's address is loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The default for local clusters since 2.59; said here so that a user's "disabled" elsewhere is no accident.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a second server on the same port starts without a word, and the kernel gives it half of the clients.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
    # Ray starts workers at 15, behind everything else on the machine; a rank that serves is no background work.
    "RAY_worker_niceness": "0",
    # Of 5 s, three times; then Serve kills its proxy and fails. On two busy cores importing Serve takes longer.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def start_local_cluster(num_cpus: float | None = None, num_gpus: float | None = None) -> dict[str, Any]:
    """Start Ray on this machine for this process, without a dashboard; returns what the cluster has.

    Args:
        num_cpus: CPUs that may be booked; default: the machine's. Booking is bookkeeping: more than there are is
            allowed, and slow.
        num_gpus: the same for GPUs.
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
    """Set what Ray reads when it is imported; explicit settings of the user stand.

    Raises:
        RuntimeError: Ray is imported already and would not notice.
    """
    missing = {name: value for name, value in LOOPBACK.items() if name not in os.environ}
    if missing and "ray" in sys.modules:
        raise RuntimeError(
            f"Ray reads {sorted(missing)} when it is imported, and it is; prepare the environment first."
        )
    os.environ.update(missing)


def connect(address: str) -> dict[str, Any]:
    """Connect to a running cluster, "auto" for the one that this machine belongs to."""
    import ray

    ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": python_path()}}, log_to_driver=False)
    resources: dict[str, Any] = ray.cluster_resources()
    return resources


def python_path() -> str:
    """The checkout that this module lies in, before what `PYTHONPATH` holds: actors start in other folders."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
