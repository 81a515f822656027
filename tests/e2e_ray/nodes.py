"""Several Ray nodes on this machine: raylets of their own, whose processes are told apart by their parents."""

from __future__ import annotations

from typing import Any

import psutil

from deploy.local.rank_processes import shared_files

CPUS_PER_WORKER = 3
"""Whole CPUs, as Ray asks: room for one replica (half a CPU) with a rank of two."""


class Nodes:
    """A head for the ingress, and workers with room for one replica each."""

    def __init__(self, num_workers: int) -> None:
        from ray.cluster_utils import Cluster

        # No room for a replica; the ingress and the prefix router's actor go here.
        head = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": 2}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []
        self.shared_files_before = shared_files()
        for _ in range(num_workers):
            self.add_worker()

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self._cluster.address)

    def add_worker(self) -> None:
        """One more node."""
        self.workers.append(self._cluster.add_node(node_ip_address="127.0.0.1", num_cpus=CPUS_PER_WORKER))

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
