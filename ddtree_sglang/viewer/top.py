"""`ddtree top`: one screen of a running server, drawn again every few seconds."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ddtree_sglang.exceptions import DDTreeError
from ddtree_sglang.viewer.layout import plain_line
from ddtree_sglang.viewer.metrics import Sample, describe, parse_info, parse_metrics

TIMEOUT_S = 10.0
HISTORY = 60
BARS = "▁▂▃▄▅▆▇█"
CLEAR = "\x1b[H\x1b[2J"
NO_METRICS = "This server exports no metrics, so this is what /server_info tells. Start it with --enable-metrics."


class NoServer(DDTreeError):
    """Nothing at that address that can be watched; the message says what to do."""


class Server:
    """A server's address and how it is asked.

    Raises:
        NoServer: the address is no URL.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise NoServer(f"URL must begin with http:// or https://, got {url!r}; give the server's address.")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A server's address is asked itself, whatever proxy a shell names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str | None:
        """The body of a GET; None where the server has no such path.

        Raises:
            NoServer: no answer, or a refusal.
        """
        try:
            request = urllib.request.Request(self.url + path, headers=self._headers)
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return str(response.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            if error.code in (404, 405):
                return None
            hint = "give --api-key-env VARIABLE" if error.code in (401, 403) else "look at its log"
            raise NoServer(f"{self.url}{path} must answer, got status {error.code}; {hint}.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NoServer(f"{self.url} must be a running server, got: {reason}; check the address.") from error

    def info(self) -> dict[str, Any]:
        """`/server_info`, empty where there is none, as at the workers' ingress."""
        text = self.get("/server_info")
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def look(self) -> tuple[Sample, bool]:
        """One look, and whether the server exports metrics.

        Raises:
            NoServer: as `get`, or neither address tells anything.
        """
        text = self.get("/metrics")
        try:
            if text is not None and (sample := parse_metrics(text)) != Sample():
                return sample, True
        except ValueError:
            # Something else answers there.
            pass
        sample = parse_info(self.info())
        if sample == Sample():
            raise NoServer(f"{self.url} must be an SGLang server, got neither /metrics nor /server_info from it.")
        return sample, False


def api_key(variable: str | None) -> str | None:
    """The key in that variable.

    Raises:
        NoServer: the variable is named and empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise NoServer(f"--api-key-env must name a variable with a key, got {variable!r}, which is empty; set it.")
    return key


class Course:
    """The last looks, with their times in seconds."""

    def __init__(self) -> None:
        self.looks: deque[tuple[float, Sample]] = deque(maxlen=HISTORY)

    def add(self, now: float, sample: Sample) -> None:
        """A new look; a server that was started anew begins a new course."""
        last = self.looks[-1][1].finished_tokens if self.looks else None
        if last is not None and sample.finished_tokens is not None and sample.finished_tokens < last:
            self.looks.clear()
        self.looks.append((now, sample))

    def values(self, name: str) -> list[float | None]:
        """One value's course; a server that runs nothing makes no tokens, whatever its gauge was set to last."""
        found = []
        for _, sample in self.looks:
            value = getattr(sample, name)
            is_idle = name == "tokens_per_s" and sample.running == 0 and value is not None
            found.append(0.0 if is_idle else value)
        return found


def watch(
    server: Server,
    out: TextIO,
    interval: float,
    *,
    once: bool,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Draw until it is ended. A server that goes away is waited for; one that never was is an error.

    Raises:
        NoServer: at the first look.
    """
    if not interval > 0:
        raise NoServer(f"--interval must be more than 0 seconds, got {interval:g}; change it.")
    course, about = Course(), describe(server.info())
    sample, has_metrics = server.look()
    while True:
        course.add(clock(), sample)
        text = screen(server.url, about, course, has_metrics)
        out.write(text + "\n" if once else _redrawn(text, "Ctrl-C ends it"))
        out.flush()
        if once:
            return 0
        while True:
            sleep(interval)
            try:
                sample, has_metrics = server.look()
                break
            except NoServer as error:
                out.write(_redrawn(text, f"{error} Waiting for it."))
                out.flush()


def _redrawn(text: str, last: str) -> str:
    """The screen in place of the one before, its lines cut at the terminal's edge; the last one may wrap."""
    columns = shutil.get_terminal_size().columns
    return CLEAR + "".join(f"{line[:columns]}\n" for line in text.splitlines()) + last + "\n"


def screen(url: str, about: str, course: Course, has_metrics: bool) -> str:
    """The screen as text."""
    now = course.looks[-1][1]
    before = course.looks[-2][1].ours if len(course.looks) > 1 else {}
    sections = (
        [plain_line(url), plain_line(about)],
        [] if has_metrics else [NO_METRICS],
        [*_rows(course), *_note(now)],
        [*_finished(now), *_as_expected(now)],
        ["what DDTREE itself counts", *_ours(now.ours, before)] if now.ours else [],
    )
    return "\n\n".join("\n".join(filter(None, lines)) for lines in sections if lines)


def _rows(course: Course) -> Iterator[str]:
    width = max(10, min(HISTORY, shutil.get_terminal_size().columns - 34))
    for label, name, form in ROWS:
        values = course.values(name)
        if values[-1] is not None:
            yield f"{label:<18}{form.format(values[-1]):>9}  {sparkline(values[-width:])}".rstrip()


ROWS = (
    ("requests running", "running", "{:.0f}"),
    ("requests waiting", "waiting", "{:.0f}"),
    ("tokens/s", "tokens_per_s", "{:.1f}"),
    ("accept length", "accept_length", "{:.2f}"),
    ("nodes now (N)", "num_nodes", "{:.0f}"),
    ("most nodes (N)", "most_nodes", "{:.0f}"),
    ("KV in use", "kv_usage", "{:.1%}"),
)


def _note(now: Sample) -> list[str]:
    if now.running == 0 and now.tokens_per_s:
        return [f"idle; the last rounds made {now.tokens_per_s:.1f} tokens/s"]
    return []


def _finished(now: Sample) -> Iterator[str]:
    tokens, rounds = now.finished_tokens, now.finished_rounds
    if not tokens:
        return
    told = f" in {rounds:.0f} rounds, {tokens / rounds:.2f} each" if rounds else ""
    answers = f" of {now.finished_requests:.0f} answers" if now.finished_requests else ""
    yield f"finished since start: {tokens:.0f} tokens{answers}{told}"


def _as_expected(now: Sample) -> Iterator[str]:
    """Whether drafter and costs are known well: what came against what policy "adaptive" had expected."""
    if now.expected_tokens and now.realised_tokens is not None:
        share = now.realised_tokens / now.expected_tokens
        yield f"tokens of drafted rounds: {now.realised_tokens:.0f} of {now.expected_tokens:.0f} expected, {share:.0%}"
    if now.expected_s and now.measured_s is not None:
        share = now.measured_s / now.expected_s
        yield f"seconds of rounds: {now.measured_s:.1f} of {now.expected_s:.1f} expected, {share:.0%}"


def _ours(series: Mapping[str, float], before: Mapping[str, float]) -> Iterator[str]:
    """A series a line, with what was added to it since the look before."""
    width = max(map(len, series))
    for name, value in sorted(series.items()):
        change = value - before.get(name, value)
        yield f"  {plain_line(name):<{width}}  {value:>10.6g}  {f'{change:+.6g}' if change else ''}".rstrip()


def sparkline(values: Sequence[float | None]) -> str:
    """A bar per value, from 0 to the largest; a blank where there is none."""
    most = max((value for value in values if value is not None), default=0.0)
    steps = [None if value is None else len(BARS) * max(value, 0.0) / most if most > 0 else 0.0 for value in values]
    return "".join(" " if step is None else BARS[min(len(BARS) - 1, int(step))] for step in steps)
