"""Keeps two ports of a one-machine cluster on the loopback interface: torch's rendezvous and Ray Serve's.

Both listen on every interface, whatever address the node has. Addresses of other machines are left alone: there, ranks
and replicas have to reach each other.

torch's `TCPStore` accepts a socket that is listening already. For a loopback host, `bind_rendezvous_to_loopback` hands
it one that is bound to that host.

A replica of Ray 2.60 opens a gRPC port on every interface (serve/_private/replica.py, `_on_initialized`), after the
user's constructor. `bind_replica_to_loopback`, called in that constructor, narrows it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from ddtree_sglang.contract.patch import assign
from ddtree_sglang.contract.worker_patches import RENDEZVOUS, SERVE_PORT

EVERY_INTERFACE = "[::]:0"


def bind_rendezvous_to_loopback() -> None:
    """Have this process's process groups on a loopback host listen on that host alone; harmless when called again."""
    assign(RENDEZVOUS)


def loopback_tcp_store(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`TCPStore` as `torch.distributed.rendezvous` calls it, by keyword, with the socket added."""

    def make(*, host_name: str, port: int, is_master: bool, **options: Any) -> Any:
        if is_master and is_loopback(host_name):
            options["master_listen_fd"] = _listen(host_name, port)
        return stock(host_name=host_name, port=port, is_master=is_master, **options)

    return make


def bind_replica_to_loopback() -> None:
    """To be called in a replica's constructor, on a node with a loopback address; harmless when called again."""
    import ray

    if is_loopback(ray.util.get_node_ip_address()):
        assign(SERVE_PORT)


def loopback_grpc_port(stock: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
    """`stock` on the loopback interface where it would be on all."""

    def add_port(server: Any, address: str) -> int:
        return stock(server, "127.0.0.1:0" if address == EVERY_INTERFACE else address)

    return add_port


def is_loopback(host: str) -> bool:
    """True for "localhost" and for addresses of the loopback network."""
    try:
        address = ipaddress.ip_address(host)
        # ::ffff:127.0.0.1, as a socket for both families reports it.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> int:
    """A listening socket; its descriptor belongs to the caller."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        return listener.detach()
