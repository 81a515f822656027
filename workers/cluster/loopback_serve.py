"""Keeps Ray Serve's port between deployments on the loopback interface, where the rest of a local cluster is.

A replica of Ray 2.60 opens a gRPC port on every interface (serve/_private/replica.py, `_on_initialized`), whatever
address its node has. The port is opened after the user's constructor, so the constructor is where it can be narrowed;
on a node with another address nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.cluster.loopback_store import is_loopback

EVERY_INTERFACE = "[::]:0"


def bind_replica_to_loopback() -> None:
    """To be called in a replica's constructor; harmless when called again."""
    import ray
    from ray.serve._private import replica

    if is_loopback(ray.util.get_node_ip_address()):
        replica.add_port_to_grpc_server = narrowed(replica.add_port_to_grpc_server)


def narrowed(stock: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
    """`stock` on the loopback interface where it would be on all."""

    def add_port(server: Any, address: str) -> int:
        return stock(server, "127.0.0.1:0" if address == EVERY_INTERFACE else address)

    return add_port
