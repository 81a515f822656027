"""torch's rendezvous listens on the loopback interface alone, if that is where it was told to be."""

from __future__ import annotations

import errno
import importlib
import socket
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from workers.cluster.loopback_store import bind_to_loopback, is_loopback, loopback_store

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
    bind_to_loopback()
    bind_to_loopback()
    port = start_group()
    try:
        assert listening_on(port) == {"127.0.0.1"}
    finally:
        dist.destroy_process_group()


def test_other_hosts_and_clients_are_left_to_torch() -> None:
    seen: list[dict[str, Any]] = []
    make = loopback_store(lambda **options: seen.append(options))
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
