"""Serve's port between deployments, on a cluster of one machine."""

from __future__ import annotations

import pytest

from workers.cluster.loopback_serve import EVERY_INTERFACE, bind_replica_to_loopback, narrowed


def test_every_interface_becomes_loopback_and_other_addresses_stay() -> None:
    asked: list[str] = []

    def stock(server: object, address: str) -> int:
        asked.append(address)
        return 7

    assert narrowed(stock)(None, EVERY_INTERFACE) == 7
    narrowed(stock)(None, "192.0.2.7:0")
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
