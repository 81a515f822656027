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


def send(url: str, case: Case, limit_s: float = ANSWER_LIMIT_S) -> tuple[int, str]:
    """Status and body of one case, the whole stream if it streams."""
    connection = _asked(url, case, limit_s)
    try:
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
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
