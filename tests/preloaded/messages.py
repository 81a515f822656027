"""Messages between the processes of one test run: JSON with open files beside it, over a Unix socket."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from typing import Any

_MAX_BYTES = 1 << 20
_MAX_FILES = 64


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends; one message is read by one reader, however many wait at an end."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_BYTES)
    return ends


def send(end: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message of at most a few hundred KB, with copies of the open files."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    end.sendmsg([json.dumps(message).encode()], rights)


def receive(end: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its files; EOFError once the other end is closed."""
    files = array.array("i")
    data, ancillary, _, _ = end.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_MAX_FILES * files.itemsize))
    if not data:
        raise EOFError("the other process has ended")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    return json.loads(data), list(files)
