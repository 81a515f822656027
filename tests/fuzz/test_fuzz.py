"""The fuzzer itself: a case follows from its numbers, every endpoint is asked, and what must not be is noticed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.fuzz import accounts
from tests.fuzz.accounts import Account
from tests.fuzz.canary import CANARIES
from tests.fuzz.cases import ABORTING, BY_DESIGN, HARMFUL, JSON, NO_OBJECTS, Case, Served, make_case
from tests.fuzz.run import Report, fuzz, settle
from tests.fuzz.sending import send

DOCUMENT: dict[str, Any] = {
    "paths": {
        "/abort_request": {
            "post": {"requestBody": {"content": {JSON: {"schema": {"$ref": "#/components/schemas/Abort"}}}}}
        },
        "/health": {"get": {}},
        "/slow_down": {"post": {}},
        "/update_weight_version": {
            "post": {"requestBody": {"content": {JSON: {"schema": {"$ref": "#/components/schemas/Version"}}}}}
        },
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
            },
            "Version": {
                "type": "object",
                "properties": {"new_version": {"type": "string"}, "abort_all_requests": {"type": "boolean"}},
                "required": ["new_version"],
            },
        }
    },
}


SERVED = Served(DOCUMENT, "tiny")


def test_a_case_follows_from_its_seed_and_number() -> None:
    assert [make_case(3, number, SERVED) for number in range(200)] == [
        make_case(3, number, SERVED) for number in range(200)
    ]
    assert make_case(3, 1, SERVED) != make_case(4, 1, SERVED)


def test_every_endpoint_is_asked_and_none_is_told_to_harm_others() -> None:
    cases = [make_case(0, number, SERVED) for number in range(2000)]
    asked = {case.path.split("?")[0] for case in cases}
    assert set(DOCUMENT["paths"]) <= asked
    assert {"/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} <= asked
    for case in cases:
        path, body = case.path.split("?")[0], _object_of(case.body)
        if path in ("/abort_request", "/update_weight_version") and {"rid", "new_version"} & set(body):
            # Where it is left out, /update_weight_version aborts everybody.
            assert [body[name] for name in ABORTING if name in body] == [False]
            assert not HARMFUL & set(body)
        assert path not in BY_DESIGN or case.body in NO_OBJECTS


def _object_of(body: bytes) -> dict[str, Any]:
    """Of a body that is a JSON object, else empty."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def test_what_lasts_is_left_out_of_a_shared_server(url: str) -> None:
    report = fuzz(url, 0, range(300), leave_out=("/abort_request", "/update_weight_version", "/slow_down"))
    asked = {path.split("?")[0] for path, _ in report.statuses}
    assert "/health" in asked
    assert not {"/abort_request", "/update_weight_version", "/slow_down"} & asked


def test_requests_of_sessions_meet_and_some_clients_hang_up() -> None:
    cases = [make_case(0, number, SERVED) for number in range(3000)]
    asked = [_object_of(case.body).get("session_params") for case in cases if case.path == "/generate"]
    named = [one for one in asked if isinstance(one, dict) and one.get("id") == "one"]
    assert len(named) > 20
    assert any(one.get("replace") is True and "rid" not in one for one in named)
    assert any(one.get("replace") is True and one.get("rid") == "a" for one in named)
    assert {case.path for case in cases} > {"/open_session", "/close_session"}
    impatient = [case for case in cases if case.hangs_up_after_s is not None]
    assert 100 < len(impatient) < 400
    assert not any(case.expects_answer for case in impatient)


def test_valid_requests_are_a_fifth_and_have_state() -> None:
    valid = [case for case in (make_case(0, number, SERVED) for number in range(1000)) if case.expects_answer]
    assert 150 < len(valid) < 250
    stateful = (b"penalty", b"min_new_tokens", b"regex", b"ebnf", b"schema")
    assert sum(any(word in case.body for word in stateful) for case in valid) > 0.8 * len(valid)


_LOADS = ("num_used_tokens", "num_running_reqs", "num_waiting_reqs")
_CANARIES = [json.dumps(body).encode() for body in CANARIES]


def test_a_valid_response_names_the_model_and_requests_name_adapters() -> None:
    served = Served(DOCUMENT, "tiny", ("first", "second"))
    valid = [case for case in (make_case(0, number, served) for number in range(1000)) if case.expects_answer]
    bodies = [json.loads(case.body) for case in valid]
    responses = [body for case, body in zip(valid, bodies, strict=True) if case.path == "/v1/responses"]
    assert {body["model"] for body in responses} == {"tiny"}
    assert {body.get("lora_path") for body in bodies} == {None, "first", "second"}


class _Server(BaseHTTPRequestHandler):
    """Answers the canary, and everything else with what the test wants."""

    answer: tuple[int, bytes] = (200, b"{}")
    canary: list[int] = [1, 2]  # noqa: RUF012
    in_use = (0, 0, 0)

    def do_GET(self) -> None:
        if self.path.startswith("/v1/loads"):
            self._send(200, json.dumps({"loads": [self.load()]}).encode())
        elif self.path == "/v1/models":
            self._send(200, json.dumps({"data": [{"id": "tiny"}]}).encode())
        else:
            self._send(200, json.dumps(DOCUMENT).encode())

    def load(self) -> dict[str, float]:
        return {**dict(zip(_LOADS, self.in_use, strict=True)), "timestamp": time.time()}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if body in _CANARIES:
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
    assert sum(report.statuses.values()) + report.hung_up == 60
    assert report.canaries > len(CANARIES)
    assert report.valid > 0
    assert json.loads(json.dumps(report.record()))["requests"] == 60


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


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"error": {"message": "no such adapter"}}\n\ndata: [DONE]\n\n',
        b'{"text": "a", "meta_info": {"finish_reason": {"type": "abort", "message": "x"}}}',
    ],
)
def test_a_200_that_says_it_failed_is_no_answer(body: bytes, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Server, "answer", (200, body))
    report = fuzz(url, 0, range(60))
    assert report.valid == 0
    assert report.refused.total() > 0


@pytest.mark.parametrize("content_type", ["text/event-stream; charset=utf-8", "application/x-ndjson"])
def test_a_stream_without_an_end_is_left_by_its_client(
    content_type: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strange length may ask for as many tokens as the context holds: minutes, where a fuzz has seconds."""
    left = threading.Event()

    def stream(self: _Server, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"data: {}\n\n")
                time.sleep(0.01)
        except OSError:
            left.set()

    monkeypatch.setattr(_Server, "_send", stream)
    status, body = send(url, Case(0, "POST", "/generate", b"{}"), stream_limit_s=0.2)
    assert (status, body.startswith("data: {}")) == (200, True)
    assert left.wait(5)


@pytest.mark.parametrize("in_use", [(5, 0, 0), (0, 1, 0), (0, 0, 1), (-3, 0, 0)])
def test_what_nobody_uses_and_is_not_free_is_a_failure(
    in_use: tuple[int, int, int], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report()
    settle(url, report, empty_the_cache=True)
    assert (report.account, report.failures) == (Account(0, 0, 0), [])
    monkeypatch.setattr(accounts, "IDLE_LIMIT_S", 0.3)
    monkeypatch.setattr(_Server, "in_use", in_use)
    settle(url, report)
    assert report.failures == [f"in use by nobody: {Account(*in_use)}"]


def test_a_server_is_given_the_time_to_end_what_its_clients_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts_in_turn = iter([(5, 1, 0), (5, 0, 0)])
    monkeypatch.setattr(_Server, "in_use", property(lambda self: next(accounts_in_turn, (0, 0, 0))))
    report = Report()
    settle(url, report)
    assert (report.account, report.failures) == (Account(0, 0, 0), [])


def test_an_account_from_before_the_end_does_not_count(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has ended publishes no more; the file of the last account is still there."""
    monkeypatch.setattr(accounts, "IDLE_LIMIT_S", 0.3)
    monkeypatch.setattr(_Server, "load", lambda self: {**dict.fromkeys(_LOADS, 0), "timestamp": time.time() - 9})
    report = Report()
    settle(url, report)
    assert report.failures == ["no account: TimeoutError: the server published none for 0 s"]


def test_a_canary_that_changes_is_a_failure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[1, 2]] * len(CANARIES))
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
