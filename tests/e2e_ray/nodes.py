"""Several Ray nodes on this machine: raylets of their own, whose processes are told apart by their parents."""

from __future__ import annotations

import os
import secrets
from typing import Any

import psutil

CPUS_PER_REPLICA = 1.5
"""What `WorkerConfig` books for a replica and its one rank of one CPU."""


class Nodes:
    """A head for the ingress, and workers with room for one replica each."""

    def __init__(self, num_workers: int) -> None:
        from ray.cluster_utils import Cluster

        # `ray start` makes this token, `Cluster` does not.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # One CPU beside the ingress's: the prefix router's actor asks for it.
        head = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": 1.2}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []
        for _ in range(num_workers):
            self.add_worker()

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self._cluster.address)

    def add_worker(self) -> None:
        """One more node."""
        self.workers.append(self._cluster.add_node(node_ip_address="127.0.0.1", num_cpus=CPUS_PER_REPLICA))

    def worker_of(self, process: psutil.Process) -> Any:
        """The node whose raylet started a process."""
        parent = process.ppid()
        return next(node for node in self.workers if _raylet_pid(node) == parent)

    def lose(self, worker: Any) -> None:
        """Kill a node's raylet; what it started ends with it."""
        self.workers.remove(worker)
        self._cluster.remove_node(worker, allow_graceful=False)

    def shutdown(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _raylet_pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
