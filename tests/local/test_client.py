"""What the client says when a server dies, hangs or refuses in the middle of an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from deploy.local.client import ClientError, generate, post, server_info

EVENT = b'data: {"output_ids": [1], "meta_info": {"finish_reason": null}}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


def read_request(connection: socket.socket) -> None:
    """All of it: what is left unread would reset the connection instead of ending it."""
    with connection.makefile("rb") as stream:
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        stream.read(length)


@pytest.fixture
def server() -> Iterator[Callable[[bytes, bool], str]]:
    """Make an address where the next request gets these bytes, and then the end of the connection or nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_until_the_end = []

    def answering(answer: bytes, hang: bool = False) -> str:
        def serve() -> None:
            connection, _ = listener.accept()
            read_request(connection)
            connection.sendall(answer)
            if hang:
                open_until_the_end.append(connection)
            else:
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield answering
    for connection in open_until_the_end:
        connection.close()
    listener.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", r"/generate: the server broke off \(RemoteDisconnected"),
        (STREAM + CHUNK, "/generate: the server broke off"),
        (STREAM + CHUNK + b"ff\r\ndata: {", "/generate: the server broke off"),
        (STREAM + b"0\r\n\r\n", "/generate sent no token"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "/generate answered 503: busy"),
    ],
)
def test_an_answer_that_breaks_off_is_told(server: Callable[..., str], answer: bytes, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        generate(server(answer), [1], 4, timeout_s=5.0)


def test_a_server_that_falls_silent_is_told(server: Callable[..., str]) -> None:
    with pytest.raises(ClientError, match=r"/generate: no byte from the server for 0 s"):
        generate(server(STREAM + CHUNK, hang=True), [1], 4, timeout_s=0.3)


def test_a_plain_answer_that_breaks_off_is_told(server: Callable[..., str]) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    with pytest.raises(ClientError, match=r"/flush_cache: the server broke off \(IncompleteRead"):
        post(server(half), "/flush_cache", timeout_s=5.0)


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClientError, match=r"/server_info: the server broke off \(URLError: .*refused"):
        server_info(f"http://127.0.0.1:{port}", timeout_s=5.0)


def test_a_whole_answer_is_taken(server: Callable[..., str]) -> None:
    done = b"e\r\ndata: [DONE]\n\n\r\n"
    assert len(b"data: [DONE]\n\n") == 0xE
    assert generate(server(STREAM + CHUNK + done + b"0\r\n\r\n"), [1], 4, timeout_s=5.0).output_ids == (1,)
