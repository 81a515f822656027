"""Sends the cases of a run while a canary asks one question again and again, and says what went wrong."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.fuzz.cases import Case, make_case

ANSWER_LIMIT_S = 60.0
"""Longest time for an answer: all requests are short."""
CANARY = {"input_ids": [72, 101, 108], "sampling_params": {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}}
NAMED_500 = ("Internal server error:",)


@dataclass
class Report:
    """What a run found.

    Attributes:
        statuses: number of answers by endpoint and status.
        failures: what must not be: no answer, a 500 without its cause, a canary that changed.
        errors: answers of 500 and above by endpoint and message, which name a cause.
        refused: messages of valid requests that were not answered with 200.
        canaries: number of right answers of the canary.
        slowest_s: the longest answer.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    canaries: int = 0
    slowest_s: float = 0.0

    def lines(self) -> Iterable[str]:
        """For a terminal."""
        by_status: Counter[int] = Counter()
        for (_, status), count in self.statuses.items():
            by_status[status] += count
        yield f"{by_status.total()} requests: {dict(sorted(by_status.items()))}"
        yield f"canary right {self.canaries} times, slowest answer {self.slowest_s:.1f} s"
        yield from (f"error x{count}: {what}" for what, count in self.errors.most_common())
        yield from (f"valid, not 200 x{count}: {what}" for what, count in self.refused.most_common(20))
        yield from (f"FAILURE {what}" for what in self.failures)


def send(url: str, case: Case, limit_s: float = ANSWER_LIMIT_S) -> tuple[int, str]:
    """Status and body of one case, the whole stream if it streams."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=limit_s)
    try:
        connection.request(case.method, case.path, case.body, {"Content-Type": case.content_type})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def fetch(url: str, path: str) -> Any:
    """A JSON document of the server."""
    return json.loads(send(url, Case(-1, "GET", path, b""))[1])


def fuzz(url: str, seed: int, numbers: Iterable[int], at_once: int = 16, valid_share: float = 0.2) -> Report:
    """Send the cases with these numbers, `at_once` of them at any time."""
    document = fetch(url, "/openapi.json")
    report = Report()
    known = _canary_answer(url)
    stop = threading.Event()
    watching = threading.Thread(target=_watch_canary, args=(url, known, stop, report))
    watching.start()
    try:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda number: _ask(url, make_case(seed, number, document, valid_share), report), numbers))
    finally:
        stop.set()
        watching.join()
    if _canary_answer(url) != known:
        report.failures.append("the canary's answer changed after the run")
    return report


def _ask(url: str, case: Case, report: Report) -> None:
    begun = time.monotonic()
    try:
        status, body = send(url, case)
    except (OSError, http.client.HTTPException) as error:
        report.failures.append(f"no answer: {type(error).__name__}: {error}: {case.described()}")
        return
    report.slowest_s = max(report.slowest_s, time.monotonic() - begun)
    report.statuses[case.path, status] += 1
    if status >= 500:
        _judge_error(status, body, case, report)
    if case.expects_answer and status != 200:
        report.refused[f"{status} {_message(body)[:120]}"] += 1


def _judge_error(status: int, body: str, case: Case, report: Report) -> None:
    message = _message(body)
    if not message:
        report.failures.append(f"{status} without a cause ({body[:80]!r}): {case.described()}")
    else:
        report.errors[f"{status} {case.method} {case.path}: {message[:160]}"] += 1


def _message(body: str) -> str:
    """What an error's JSON says; "" where there is none."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
            if isinstance(value, Mapping):
                value = value.get("message", "")
    return value if isinstance(value, str) else ""


def _canary_answer(url: str) -> list[int]:
    status, body = send(url, Case(-1, "POST", "/generate", json.dumps(CANARY).encode()))
    if status != 200:
        raise RuntimeError(f"the canary must be answered, got {status} {body[:200]}")
    ids: list[int] = json.loads(body)["output_ids"]
    return ids


def _watch_canary(url: str, known: list[int], stop: threading.Event, report: Report) -> None:
    """Ask once at least, however soon the run is over."""
    while True:
        try:
            answer = _canary_answer(url)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            report.failures.append(f"the canary was not answered: {type(error).__name__}: {error}")
            stop.wait(1.0)
        else:
            if answer == known:
                report.canaries += 1
            else:
                report.failures.append(f"the canary's answer changed from {known} to {answer}")
        if stop.wait(0.05):
            return
