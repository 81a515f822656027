"""`ddtree calibrate` against a server that is made up: what it asks for, how often, and what it makes of refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.calibration.asking import KEY, MOST_ASKED, Plan
from ddtree_sglang.cli import main
from ddtree_sglang.cost_batches import MOST_TOKENS, sizes_up_to
from ddtree_sglang.engine import cost_report
from tests.calibration.cases import CELLS


class Rounds(ThreadingHTTPServer):
    """Every drafted round emits `a_round` tokens; a plain one has no verify count, as an older server's."""

    def __init__(self, a_round: int = 3, costs: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.a_round, self.asked, self.refusal, self.replicas = a_round, [], "", 1
        self.costs = {"nodes": [1, 2, 5], "drafted": [0.0, 0.5, 1.0], "cells": CELLS} if costs is None else costs

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        params = body["sampling_params"]
        width, tokens = params["custom_params"]["ddtree"]["budget"] + 1, params["max_new_tokens"]
        assert params["custom_params"]["ddtree"]["adapt"] is False
        rounds = tokens - 1 if width == 1 else -(-(tokens - 1) // self.a_round)
        assert tokens <= MOST_TOKENS
        self.asked.append((len(body["text"]), width, rounds, tuple(body["text"])))
        meta = {"completion_tokens": tokens, **({} if width == 1 else {"spec_verify_ct": rounds})}
        return [{"meta_info": meta}] * len(body["text"])


class Handler(BaseHTTPRequestHandler):
    server: Rounds

    def do_GET(self) -> None:
        state = {"effective_max_running_requests_per_dp": 4, **({KEY: self.server.costs} if self.server.costs else {})}
        self._answer(200, {"internal_states": [state] * self.server.replicas, "model_path": "tiny"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refusal:
            self._answer(400, {"error": self.server.refusal})
        else:
            self._answer(200, self.server.generate(body))

    def _answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Rounds]:
    with Rounds() as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_each_cell_is_measured_as_often_as_wanted(server: Rounds, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    assert main(["calibrate", server.url, "--rounds", "7", "--output", str(output)]) == 0
    counts: dict[tuple[int, int], int] = {}
    for size, width, rounds, _ in server.asked:
        # The first round of an answer has the prefill before it.
        counts[size, width] = counts.get((size, width), 0) + rounds - 1
    assert set(counts) == {(size, width) for size in (1, 2, 4) for width in (1, 2, 5)}
    assert all(7 <= count <= 14 for count in counts.values()), counts
    texts = [text for *_, some in server.asked for text in some]
    assert len(set(texts)) == len(texts), "a cache would know a text that comes twice"
    assert json.loads(output.read_text())["facts"] == {"model_path": "tiny"}


def test_what_is_asked_is_what_was_wanted(server: Rounds) -> None:
    assert main(["calibrate", server.url, "--requests", "2", "--nodes", "5", "--rounds", "2"]) == 0
    assert {(size, width) for size, width, *_ in server.asked} == {(2, 5)}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--nodes", "4"], "--nodes must be of the server's [1, 2, 5], got [4]"),
        (["--requests", "8"], "--requests must be from 1 to the server's 4, got [8]"),
        (["--rounds", "1"], "--rounds must be 2 or more, --words 1, got 1"),
        (["--show", "x"], "either the URL of a server or --show FILE"),
    ],
)
def test_what_cannot_be_is_refused(
    server: Rounds, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", server.url, *flags]) == 1
    assert told in capsys.readouterr().err
    assert not server.asked


def test_a_server_that_measures_nothing_is_told(server: Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    server.costs = {}
    assert main(["calibrate", server.url]) == 1
    assert "--speculative-ddtree-policy adaptive" in capsys.readouterr().err


def test_a_server_of_several_is_not_measured_as_one(server: Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    """Its parts share a batch out, so that none has a round of the size that was asked for."""
    server.replicas = 2
    assert main(["calibrate", server.url]) == 1
    assert "got 2 that share requests out (--dp-size)" in capsys.readouterr().err
    assert not server.asked


def test_a_refusal_is_told_in_the_servers_words(server: Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusal = "custom_params.ddtree has no option but budget"
    assert main(["calibrate", server.url]) == 1
    assert "has no option but budget" in capsys.readouterr().err


def test_a_server_that_gives_too_few_rounds_is_not_asked_for_ever(
    server: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    server.a_round = 10**9
    assert main(["calibrate", server.url, "--requests", "1", "--nodes", "5", "--rounds", "4"]) == 0
    assert len(server.asked) == 2 * MOST_ASKED
    assert "5 nodes: 0 rounds of 2" in capsys.readouterr().err


def test_a_plan_goes_there_and_back() -> None:
    assert list(Plan((1, 2), (1, 3), 3, 5).cells()) == [
        (1, 1, 2),
        (1, 3, 2),
        (1, 3, 1),
        (1, 1, 1),
        (2, 1, 2),
        (2, 3, 2),
        (2, 3, 1),
        (2, 1, 1),
    ]
    assert list(Plan((1,), (3,), 1, 5).cells()) == [(1, 3, 1)]


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_sizes_are_doubled_up_to_the_most(most: int, sizes: tuple[int, ...]) -> None:
    assert sizes_up_to(most) == sizes


def test_the_servers_key_is_the_clients() -> None:
    assert cost_report.KEY == KEY
