"""`ddtree top URL`: the screen of a server that answers, of one that tells little, and of none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ddtree_sglang.cli import main
from ddtree_sglang.viewer import top
from ddtree_sglang.viewer.metrics import Sample, parse_metrics
from ddtree_sglang.viewer.top import CLEAR, Course, NoServer, screen, sparkline, watch
from tests.viewer.test_metrics import RECORDED

INFO = {
    "served_model_name": "SmolLM2-135M-Instruct",
    "speculative_algorithm": "DDTREE",
    "speculative_num_draft_tokens": 17,
    "internal_states": [{"last_gen_throughput": 12.5, "avg_spec_accept_length": 2.25}],
}

Answer = Callable[[str, Any], tuple[int, str]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on the loopback interface that answers a path with a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pages(**bodies: str) -> Answer:
    def answer(path: str, _: Any) -> tuple[int, str]:
        body = bodies.get(path.strip("/"))
        return (200, body) if body is not None else (404, "")

    return answer


def test_one_look_at_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = RECORDED + 'ddtree_suspect_pair{tp_rank="0"} 0\n'
    with serving(pages(metrics=metrics, server_info=json.dumps(INFO))) as url:
        assert main(["top", url + "/", "--once"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        url,
        "SmolLM2-135M-Instruct, DDTREE, N up to 17",
        "",
        "requests running          2  █",
        "requests waiting          0  ▁",
        "tokens/s               14.8  █",
        "accept length          2.48  █",
        "most nodes (N)           17  █",
        "KV in use              1.2%  █",
        "",
        "finished since start: 28 tokens of 2 answers in 11 rounds, 2.55 each",
        "",
        "what DDTREE itself counts",
        "  ddtree_suspect_pair           0",
    ]


@pytest.mark.parametrize("metrics", [None, "<html></html>", ""])
def test_server_without_metrics_is_shown_by_its_info_with_the_flag_that_it_lacks(
    metrics: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = {"server_info": json.dumps(INFO), **({} if metrics is None else {"metrics": metrics})}
    with serving(pages(**bodies)) as url:
        assert main(["top", url, "--once"]) == 0
    out = capsys.readouterr().out
    assert "This server exports no metrics, so this is what /server_info tells. Start it with --enable-metrics." in out
    assert "tokens/s               12.5" in out
    assert "accept length          2.25" in out
    assert "requests running" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:1"], "must be a running server, got: [Errno 111] Connection refused; check the address"),
        (["localhost:30000"], "URL must begin with http:// or https://, got 'localhost:30000'"),
        (["http://127.0.0.1:1", "--interval", "0"], "--interval must be more than 0 seconds, got 0"),
        (["http://127.0.0.1:1", "--interval", "nan"], "--interval must be more than 0 seconds, got nan"),
        (["http://127.0.0.1:1", "--api-key-env", "NO_SUCH_KEY"], "which is empty; set it"),
        (["http://[", "--once"], "must be a running server"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


def test_ingress_of_the_workers_is_watched_too(capsys: pytest.CaptureFixture[str]) -> None:
    from workers.answers.retry import AnswerCounters
    from workers.http.metrics import IngressMetrics

    metrics = IngressMetrics()
    metrics.count(AnswerCounters(requests=5, tokens=80))
    with serving(pages(metrics=metrics.text(ready_replicas=2).decode())) as url:
        assert main(["top", url, "--once"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{url}\n\nwhat DDTREE itself counts\n")
    assert [line.split()[-1] for line in out.splitlines() if "requests_total" in line or "tokens_total" in line] == [
        "5",
        "80",
    ]


def test_something_that_is_no_such_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(pages(metrics="other 1\n", server_info="[]")) as url:
        assert main(["top", url, "--once"]) == 1
    assert "must be an SGLang server, got neither /metrics nor /server_info" in capsys.readouterr().err


def test_key_is_sent_and_a_missing_one_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, headers: Any) -> tuple[int, str]:
        allowed = headers["Authorization"] == "Bearer secret"
        return (200, RECORDED if path == "/metrics" else json.dumps(INFO)) if allowed else (401, "")

    monkeypatch.setenv("THE_KEY", "secret")
    with serving(answer) as url:
        assert main(["top", url, "--once", "--api-key-env", "THE_KEY"]) == 0
        assert main(["top", url, "--once"]) == 1
    assert "got status 401; give --api-key-env VARIABLE" in capsys.readouterr().err


class Looks:
    """A server whose looks are given; None is one that does not answer."""

    url = "http://server"

    def __init__(self, *looks: Sample | None) -> None:
        self.left = list(looks)

    def info(self) -> dict[str, Any]:
        return INFO

    def look(self) -> tuple[Sample, bool]:
        if not self.left:
            raise KeyboardInterrupt
        sample = self.left.pop(0)
        if sample is None:
            raise NoServer("http://server must be a running server, got: refused; check the address.")
        return sample, True


def screens(*looks: Sample | None) -> list[str]:
    out = io.StringIO()
    server: Any = Looks(*looks)
    with pytest.raises(KeyboardInterrupt):
        watch(server, out, 2.0, once=False, sleep=lambda _: None)
    return out.getvalue().split(CLEAR)[1:]


def test_values_have_a_course_and_a_server_that_goes_away_is_waited_for() -> None:
    drawn = screens(
        Sample(running=1, tokens_per_s=10.0, finished_tokens=1),
        Sample(running=2, tokens_per_s=40.0, finished_tokens=5),
        None,
        Sample(running=1, tokens_per_s=20.0, finished_tokens=9),
    )
    assert len(drawn) == 4
    assert "tokens/s               40.0  ▃█\n" in drawn[1]
    assert drawn[2].endswith("check the address. Waiting for it.\n")
    assert "tokens/s               20.0  ▃█▅\n" in drawn[3]
    assert drawn[3].endswith("Ctrl-C ends it\n")


def test_lines_end_at_the_terminals_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    drawn = screens(*[Sample(running=float(number), ours={"ddtree_" + "x" * 60: 1.0}) for number in range(30)])
    assert {len(line) <= 40 for line in drawn[-1].splitlines()[:-1]} == {True}
    assert drawn[-1].splitlines()[3].endswith("█"), "the newest value is there"


def test_server_that_was_started_anew_begins_a_new_course() -> None:
    drawn = screens(Sample(running=1, finished_tokens=50), Sample(running=1, finished_tokens=2))
    assert "requests running          1  █\n" in drawn[1]


def test_idle_server_makes_no_tokens_whatever_its_gauge_was_set_to_last() -> None:
    course = Course()
    course.add(0.0, Sample(running=3, tokens_per_s=30.0))
    course.add(2.0, Sample(running=0, tokens_per_s=30.0))
    shown = screen("http://server", "m", course, True)
    assert "tokens/s                0.0  █▁" in shown
    assert "idle; the last rounds made 30.0 tokens/s" in shown


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    course = Course()
    course.add(0.0, parse_metrics('ddtree_x{why="\x1b[2J"} 1\n'))
    assert "\x1b" not in screen("http://server", "m\x1b[31m", course, True)


def test_decisions_show_what_was_added_since_the_look_before() -> None:
    course = Course()
    for plain, tree in ((5.0, 100.0), (5.0, 112.0)):
        text = f'ddtree_rounds_total{{decision="plain"}} {plain}\nddtree_rounds_total{{decision="tree"}} {tree}\n'
        course.add(0.0, parse_metrics(text))
    assert screen("http://server", "m", course, True).splitlines()[-2:] == [
        "  ddtree_rounds_total (decision=plain)           5",
        "  ddtree_rounds_total (decision=tree)          112  +12",
    ]


def test_expected_stands_beside_what_came() -> None:
    told = {"expected_tokens": 200.0, "realised_tokens": 190.0, "expected_s": 10.0, "measured_s": 12.5}
    course = Course()
    course.add(0.0, Sample(num_nodes=5.0, **told))
    shown = screen("http://server", "m", course, True)
    assert "nodes now (N)             5  █" in shown
    assert "tokens of drafted rounds: 190 of 200 expected, 95%" in shown
    assert "seconds of rounds: 12.5 of 10.0 expected, 125%" in shown


def test_history_is_bounded() -> None:
    course = Course()
    for number in range(1000):
        course.add(float(number), Sample(running=1.0))
    assert len(course.values("running")) == top.HISTORY


@pytest.mark.parametrize(
    ("values", "shown"), [([], ""), ([0, 0], "▁▁"), ([1, 2, 8], "▂▃█"), ([5], "█"), ([-1, 4], "▁█"), ([None, 4], " █")]
)
def test_sparkline_goes_from_zero_to_the_largest(values: list[float | None], shown: str) -> None:
    assert sparkline(values) == shown
