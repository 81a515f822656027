"""No slot of the KV pool is lost: after a thousand rounds, and after two hundred aborted requests."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.local.client import flush_cache
from tests.e2e.asking import PROMPTS, ask, ask_all, rounds_of
from tests.e2e.servers import Server

NUM_ROUNDS = 1000
NUM_ABORTS = 200


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Server]:
    with serve("DDTREE", 16, "--max-running-requests", "16") as started:
        yield started


def free_slots(server: Server) -> int:
    """Free slots of the pool as one short request, alone after a flush, finds them in its first round."""
    flush_cache(server.url)
    before = len(rounds_of(server.trace))
    ask(server.url, "The quick brown fox", 4)
    return int(rounds_of(server.trace)[before]["free_slots"])


def test_thousand_rounds_leave_every_slot_free(server: Server) -> None:
    at_start = free_slots(server)
    first = len(rounds_of(server.trace))
    while len(rounds_of(server.trace)) - first < NUM_ROUNDS:
        ask_all(server.url, PROMPTS * 2, 8, max_new_tokens=96, ignore_eos=True)
    assert free_slots(server) == at_start


def abort_midway(server: Server, index: int) -> None:
    """Send a streaming request and hang up in the middle of the answer, after its first token."""
    address = urlsplit(server.url)
    body = json.dumps(
        {
            "text": f"{PROMPTS[index % len(PROMPTS)]} {index}",
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 400, "ignore_eos": True},
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        received = b""
        while b"data:" not in received:
            piece = connection.recv(4096)
            assert piece, f"the server hung up first, after {received!r}"
            received += piece
        time.sleep(0.02 * (index % 7))


def test_two_hundred_aborted_requests_leave_every_slot_free(server: Server) -> None:
    at_start = free_slots(server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: abort_midway(server, index), range(NUM_ABORTS)))
    deadline = time.monotonic() + 120
    rounds = -1
    while rounds != len(rounds_of(server.trace)) and time.monotonic() < deadline:
        # Idle once no round runs any more.
        rounds = len(rounds_of(server.trace))
        time.sleep(3)
    assert free_slots(server) == at_start
    assert len(ask(server.url, "The capital of France is", 8)["output_ids"]) == 8
    assert "memory leak" not in server.log.read_text(encoding="utf-8", errors="replace")
