"""One request over one connection, to its end or until its client has had enough."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from tests.fuzz.cases import Case

ANSWER_LIMIT_S = 60.0
"""Longest time for an answer: all requests are short."""
STREAM_LIMIT_S = 15.0
"""After which a client has seen enough of a stream, since strange lengths ask for all that the context holds. Any
answer whose length is not said beforehand is one: Ollama's, of lines of JSON, is no event stream."""


def send(
    url: str, case: Case, limit_s: float = ANSWER_LIMIT_S, stream_limit_s: float = STREAM_LIMIT_S
) -> tuple[int, str]:
    """Status and body of one case; of a stream the whole, or what had come when its client had seen enough."""
    connection = _asked(url, case, limit_s)
    try:
        response = connection.getresponse()
        enough = time.monotonic() + stream_limit_s
        if case.expects_answer or response.length is not None or response.status >= 400:
            return response.status, response.read().decode("utf-8", "replace")
        body = b""
        while time.monotonic() < enough and (part := response.read1()):
            body += part
        return response.status, body.decode("utf-8", "replace")
    finally:
        connection.close()


def hang_up(url: str, case: Case, after_s: float) -> None:
    """Send one case and close its connection in the middle of whatever comes."""
    connection = _asked(url, case, ANSWER_LIMIT_S)
    time.sleep(after_s)
    connection.close()


def fetch(url: str, path: str) -> Any:
    """A JSON document of the server."""
    return json.loads(send(url, Case(-1, "GET", path, b""))[1])


def _asked(url: str, case: Case, limit_s: float) -> http.client.HTTPConnection:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=limit_s)
    try:
        connection.request(case.method, case.path, case.body, {"Content-Type": case.content_type})
    except BaseException:
        connection.close()
        raise
    return connection
