"""Sends the cases of a run while canaries ask the same again and again, and says what went wrong."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fuzz.accounts import Account, account_of_idle, flush
from tests.fuzz.canary import Canaries
from tests.fuzz.cases import Case, Served, make_case
from tests.fuzz.sending import fetch, hang_up, send


@dataclass(frozen=True)
class Outcome:
    """What came back for a case: status and body, an error of the connection, or nothing, for who did not wait."""

    case: Case
    status: int | None = None
    body: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass
class Report:
    """What a run found.

    Attributes:
        statuses: number of answers by endpoint and status.
        failures: what must not be: no answer, a 500 without its cause, a canary that changed, KV slots that are lost.
        errors: answers of 500 and above by endpoint and message, which name a cause.
        refused: messages of valid requests that were not answered with 200.
        valid: number of requests with grammar or penalties that were answered with 200.
        hung_up: number of requests whose client did not wait.
        canaries: number of right answers of the canaries.
        slowest_s: the longest answer.
        seconds: from the first request to the last answer.
        account: what was in use when all was over, or None where nobody asked.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    valid: int = 0
    hung_up: int = 0
    canaries: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    account: Account | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        case, status = outcome.case, outcome.status
        if outcome.error:
            self.failures.append(f"no answer: {outcome.error}: {case.described()}")
        elif status is None:
            self.hung_up += 1
        else:
            self.slowest_s = max(self.slowest_s, outcome.seconds)
            self.statuses[case.path, status] += 1
            if status >= 500:
                self._judge_error(outcome)
            if case.expects_answer and _is_answered(outcome):
                self.valid += 1
            elif case.expects_answer:
                self.refused[f"{status} {_message(outcome.body)[:120]}"] += 1

    def _judge_error(self, outcome: Outcome) -> None:
        message = _message(outcome.body)
        what = f"{outcome.status} {outcome.case.method} {outcome.case.path}"
        if message:
            self.errors[f"{what}: {message[:160]}"] += 1
        else:
            self.failures.append(f"{what} without a cause ({outcome.body[:80]!r}): {outcome.case.described()}")

    def by_status(self) -> dict[int, int]:
        """Number of answers with each status."""
        counts: Counter[int] = Counter()
        for (_, status), count in self.statuses.items():
            counts[status] += count
        return dict(sorted(counts.items()))

    def lines(self) -> Iterable[str]:
        """For a terminal."""
        answered = sum(self.by_status().values())
        yield f"{answered + self.hung_up} requests: {self.by_status()}, {self.hung_up} hung up, {self.valid} valid"
        yield f"canary right {self.canaries} times, slowest answer {self.slowest_s:.1f} s, {self.seconds:.0f} s"
        if self.account is not None:
            yield f"in use afterwards: {self.account}"
        yield from (f"error x{count}: {what}" for what, count in self.errors.most_common())
        yield from (f"valid, not 200 x{count}: {what}" for what, count in self.refused.most_common(20))
        yield from (f"FAILURE {what}" for what in self.failures)

    def record(self) -> dict[str, Any]:
        """For a file of results."""
        return {
            "requests": sum(self.by_status().values()) + self.hung_up,
            "hung_up": self.hung_up,
            "statuses": {str(status): count for status, count in self.by_status().items()},
            "valid_answered": self.valid,
            "valid_refused": dict(self.refused),
            "errors": dict(self.errors),
            "canaries": self.canaries,
            "slowest_s": round(self.slowest_s, 2),
            "seconds": round(self.seconds, 1),
            "kv_slots_in_use_after": None if self.account is None else self.account.kv_slots,
            "failures": self.failures,
        }


def fuzz(
    url: str,
    seed: int,
    numbers: Iterable[int],
    at_once: int = 16,
    valid_share: float = 0.2,
    leave_out: Iterable[str] = (),
    adapters: Sequence[str] = (),
) -> Report:
    """Send the cases with these numbers, `at_once` of them at any time.

    Args:
        leave_out: paths of the server's OpenAPI document that are not drawn from it.
        adapters: names of adapters that the server has loaded, for valid requests.
    """
    served = what_is_served(url, adapters)
    paths = {path: one for path, one in served.document["paths"].items() if path not in leave_out}
    served = replace(served, document={**served.document, "paths": paths})
    report = Report()
    canaries = Canaries(url)
    cases = [make_case(seed, number, served, valid_share) for number in numbers]
    begun = time.monotonic()
    with canaries, ThreadPoolExecutor(at_once) as pool:
        outcomes = list(pool.map(lambda case: _ask(url, case), cases))
    report.seconds = time.monotonic() - begun
    for outcome in outcomes:
        report.add(outcome)
    canaries.ask_all()
    report.canaries = canaries.right
    report.failures += canaries.failures
    return report


def what_is_served(url: str, adapters: Sequence[str] = ()) -> Served:
    """Ask the server."""
    return Served(fetch(url, "/openapi.json"), fetch(url, "/v1/models")["data"][0]["id"], tuple(adapters))


def settle(url: str, report: Report, empty_the_cache: bool = False) -> None:
    """Wait until the server is idle, and note what it has not given back, with or without what its cache holds."""
    try:
        if empty_the_cache and not flush(url):
            report.failures.append("the prefix cache could not be emptied")
        report.account = account_of_idle(url)
    except (OSError, http.client.HTTPException) as error:
        report.failures.append(f"no account: {type(error).__name__}: {error}")
        return
    if not report.account.is_empty():
        report.failures.append(f"in use by nobody: {report.account}")


def _ask(url: str, case: Case) -> Outcome:
    begun = time.monotonic()
    try:
        if case.hangs_up_after_s is not None:
            hang_up(url, case, case.hangs_up_after_s)
            return Outcome(case)
        status, body = send(url, case)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(case, error=f"{type(error).__name__}: {error}")
    return Outcome(case, status, body, time.monotonic() - begun)


def _is_answered(outcome: Outcome) -> bool:
    """200, and neither an event of a stream nor a reason to finish says otherwise."""
    said = outcome.body.replace(" ", "")
    return outcome.status == 200 and not any(word in said for word in ('{"error":{', '"type":"abort"'))


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
