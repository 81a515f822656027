"""A cluster of one machine: torch's rendezvous and Serve's port between deployments stay on the loopback interface."""

from __future__ import annotations

import errno
import importlib
import socket
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from workers.cluster.loopback import (
    EVERY_INTERFACE,
    bind_rendezvous_to_loopback,
    bind_replica_to_loopback,
    is_loopback,
    loopback_grpc_port,
    loopback_tcp_store,
)

RENDEZVOUS = importlib.import_module("torch.distributed.rendezvous")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_group() -> int:
    """Start a group of one on a free port, which another process may take first; then on another."""
    for _ in range(20):
        port = free_port()
        try:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
            return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("twenty ports were free, and taken a moment later")


def listening_on(port: int) -> set[str]:
    connections = psutil.Process().net_connections("tcp")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def test_process_group_on_loopback_listens_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RENDEZVOUS, "TCPStore", RENDEZVOUS.TCPStore)  # restored afterwards
    bind_rendezvous_to_loopback()
    bind_rendezvous_to_loopback()
    port = start_group()
    try:
        assert listening_on(port) == {"127.0.0.1"}
    finally:
        dist.destroy_process_group()


def test_other_hosts_and_clients_are_left_to_torch() -> None:
    seen: list[dict[str, Any]] = []
    make = loopback_tcp_store(lambda **options: seen.append(options))
    make(host_name="192.0.2.7", port=1, is_master=True, timeout=timedelta(seconds=1))
    make(host_name="127.0.0.1", port=1, is_master=False, timeout=timedelta(seconds=1))
    assert not [options for options in seen if "master_listen_fd" in options]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.7", False),
        ("::", False),
        ("localhost", True),
        ("192.0.2.7", False),
        ("node-1", False),
    ],
)
def test_loopback_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_every_interface_becomes_loopback_and_other_addresses_stay() -> None:
    asked: list[str] = []

    def stock(server: object, address: str) -> int:
        asked.append(address)
        return 7

    assert loopback_grpc_port(stock)(None, EVERY_INTERFACE) == 7
    loopback_grpc_port(stock)(None, "192.0.2.7:0")
    assert asked == ["127.0.0.1:0", "192.0.2.7:0"]


def test_serve_opens_that_port_by_the_name_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from ray.serve._private import replica

    assert f'add_port_to_grpc_server(self._server, "{EVERY_INTERFACE}")' in inspect.getsource(replica)
    stock = replica.add_port_to_grpc_server
    monkeypatch.setattr(replica, "add_port_to_grpc_server", stock)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.7")
    bind_replica_to_loopback()
    assert replica.add_port_to_grpc_server is stock
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    bind_replica_to_loopback()
    assert replica.add_port_to_grpc_server is not stock
