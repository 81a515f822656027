"""`free_port` against a kernel that hands out ports, and a range that is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.local import server_process
from deploy.local.server_process import ServerError, free_port


def kernels_ports(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ip_local_port_range"
    path.write_text(f"{first}\t60999\n", encoding="ascii")
    monkeypatch.setattr(server_process, "_KERNELS_PORTS", path)


def test_no_connection_is_given_the_port_by_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_ports(12_000, tmp_path, monkeypatch)
    assert all(10_000 <= free_port() < 12_000 for _ in range(100))


def test_a_port_that_somebody_listens_at_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        monkeypatch.setattr(server_process, "_FIRST_PORT", taken)
        monkeypatch.setattr(server_process, "_kernels_first_port", lambda: taken + 1)
        with pytest.raises(ServerError, match="must be free"):
            free_port()


@pytest.mark.parametrize("text", ["", "1024\t60999", "no numbers"])
def test_a_range_that_cannot_be_used_is_the_usual_one(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ip_local_port_range"
    path.write_text(text, encoding="ascii")
    monkeypatch.setattr(server_process, "_KERNELS_PORTS", path)
    assert 10_000 <= free_port() < 32_768
