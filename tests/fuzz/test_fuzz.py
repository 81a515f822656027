"""The fuzzer itself: a case follows from its numbers, every endpoint is asked, and what must not be is noticed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.fuzz.cases import BY_DESIGN, HARMFUL, JSON, make_case
from tests.fuzz.run import fuzz

DOCUMENT: dict[str, Any] = {
    "paths": {
        "/abort_request": {
            "post": {"requestBody": {"content": {JSON: {"schema": {"$ref": "#/components/schemas/Abort"}}}}}
        },
        "/health": {"get": {}},
        "/slow_down": {"post": {}},
    },
    "components": {
        "schemas": {
            "Abort": {
                "type": "object",
                "properties": {
                    "rid": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "abort_all": {},
                },
                "required": ["rid", "abort_all"],
            }
        }
    },
}


def test_a_case_follows_from_its_seed_and_number() -> None:
    assert [make_case(3, number, DOCUMENT) for number in range(200)] == [
        make_case(3, number, DOCUMENT) for number in range(200)
    ]
    assert make_case(3, 1, DOCUMENT) != make_case(4, 1, DOCUMENT)


def test_every_endpoint_is_asked_and_none_is_told_to_harm_others() -> None:
    cases = [make_case(0, number, DOCUMENT) for number in range(2000)]
    asked = {case.path.split("?")[0] for case in cases}
    assert set(DOCUMENT["paths"]) <= asked
    assert {"/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} <= asked
    for case in cases:
        if case.path.startswith("/abort_request") and case.body.startswith(b'{"'):
            assert not HARMFUL & set(json.loads(case.body))
        if case.path.split("?")[0] in BY_DESIGN:
            assert b"forward_sleep_time" not in case.body


def test_valid_requests_are_a_fifth_and_have_state() -> None:
    valid = [case for case in (make_case(0, number, DOCUMENT) for number in range(1000)) if case.expects_answer]
    assert 150 < len(valid) < 250
    stateful = (b"penalty", b"min_new_tokens", b"regex", b"ebnf", b"schema")
    assert sum(any(word in case.body for word in stateful) for case in valid) > 0.8 * len(valid)


class _Server(BaseHTTPRequestHandler):
    """Answers the canary, and everything else with what the test wants."""

    answer: tuple[int, bytes] = (200, b"{}")
    canary: list[int] = [1, 2]  # noqa: RUF012

    def do_GET(self) -> None:
        self._send(200, json.dumps(DOCUMENT).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if body.startswith(b'{"input_ids": [72, 101, 108]'):
            self._send(200, json.dumps({"output_ids": self.canary}).encode())
        else:
            self._send(*self.answer)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class _ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Server, "answer", (200, b"{}"))
    server = _ManyAtOnce(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_answers_of_any_status_below_500_are_fine(url: str) -> None:
    report = fuzz(url, 0, range(60))
    assert report.failures == []
    assert sum(report.statuses.values()) == 60
    assert report.canaries > 0


def test_a_500_must_name_its_cause(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Server, "answer", (500, b"Internal Server Error"))
    report = fuzz(url, 0, range(30))
    assert report.failures
    assert all("without a cause" in failure for failure in report.failures)
    monkeypatch.setattr(_Server, "answer", (500, b'{"error": {"message": "no such adapter"}}'))
    report = fuzz(url, 0, range(30))
    assert report.failures == []
    assert report.errors.total() > 0
    assert report.refused.total() > 0


def test_a_canary_that_changes_is_a_failure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[1, 2]])
    monkeypatch.setattr(_Server, "canary", property(lambda self: next(answers, [1, 3])))
    assert any("changed" in failure for failure in fuzz(url, 0, range(20)).failures)


def test_a_server_that_is_gone_is_a_failure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(self: _Server, status: int, body: bytes) -> None:
        self.close_connection = True

    real = _Server._send
    monkeypatch.setattr(
        _Server,
        "_send",
        lambda self, status, body: (real if b"output_ids" in body or self.command == "GET" else hang_up)(
            self, status, body
        ),
    )
    assert any("no answer" in failure for failure in fuzz(url, 0, range(20)).failures)
