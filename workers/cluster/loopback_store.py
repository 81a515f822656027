"""Keeps torch's rendezvous of a one-machine cluster on the loopback interface.

torch's `TCPStore` listens on every interface, whatever host it was given, and anybody who reaches it may write into
it. It takes a socket that is listening already; for a loopback host, `bind_to_loopback` hands it one that is bound to
that host alone. Other hosts are left as they are: ranks on other machines have to reach them.
"""

from __future__ import annotations

import importlib
import ipaddress
import socket
from collections.abc import Callable
from typing import Any


def bind_to_loopback() -> None:
    """Have this process's process groups listen as said above; harmless when called again."""
    # The package hides its module behind a function of the same name.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    stock = rendezvous.TCPStore
    if getattr(stock, "bound_to_loopback", False):
        return
    rendezvous.TCPStore = loopback_store(stock)


def loopback_store(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`TCPStore` as `torch.distributed.rendezvous` calls it, by keyword, with the socket added."""

    def make(*, host_name: str, port: int, is_master: bool, **options: Any) -> Any:
        if is_master and is_loopback(host_name):
            options["master_listen_fd"] = _listen(host_name, port)
        return stock(host_name=host_name, port=port, is_master=is_master, **options)

    make.bound_to_loopback = True  # type: ignore[attr-defined]
    return make


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
