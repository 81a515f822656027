"""No slot of the KV pool is lost after two hundred aborted requests; for rounds see test_thousand_rounds.py."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.e2e.asking import PROMPTS, ask, free_slots, num_rounds
from tests.e2e.servers import Server

NUM_ABORTS = 200


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


def test_two_hundred_aborted_requests_leave_every_slot_free(ddtree: Server) -> None:
    server = ddtree
    at_start = free_slots(server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: abort_midway(server, index), range(NUM_ABORTS)))
    deadline = time.monotonic() + 120
    rounds = -1
    while rounds != num_rounds(server) and time.monotonic() < deadline:
        # Idle once no round runs any more.
        rounds = num_rounds(server)
        time.sleep(3)
    assert free_slots(server) == at_start
    assert len(ask(server.url, "The capital of France is", 8)["output_ids"]) == 8
    assert "memory leak" not in server.log.read_text(encoding="utf-8", errors="replace")
