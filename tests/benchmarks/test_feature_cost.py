"""The cost of a feature is told from rounds of the right batch size, and from the stages that it works in."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import feature_cost
from benchmarks.harness.request_features import ALL_STAGES, ENABLED, FEATURES, LORA, Feature
from benchmarks.harness.systems import Common, System

STAGES = ("prepare", "draft", "build", "verify", "accept", "commit", "context")


class Traced:
    """A server that writes rounds: stages take 1 ms each unless told otherwise, and so does the scheduler between."""

    def __init__(self, trace: Path) -> None:
        self.trace_path, self.url, self.clock_s = trace, str(trace), 7.0

    def round(self, batch_size: int, gap_ms: float = 1.0, commit_len: int = 3, **times: float) -> None:
        stages = {f"{name}_ms": times.get(name, 1.0) for name in STAGES}
        total = sum(stages.values())
        self.clock_s += (gap_ms + total) / 1e3
        line = {"batch_size": batch_size, "commit_lens": [commit_len] * batch_size, "total_ms": total, **stages}
        with self.trace_path.open("a") as file:
            file.write(json.dumps({**line, "ended_s": self.clock_s}) + "\n")


class Servers:
    """What is asked of servers; the time of a feature is in `accept`, in the verify and between rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_url: dict[str, Traced] = {}
        self.asked: list[tuple[str, bool]] = []
        self.slow_url = ""
        monkeypatch.setattr(feature_cost, "ask_together", self.ask)

    def add(self, trace: Path) -> Any:
        server = Traced(trace)
        self.by_url[server.url] = server
        return server

    def ask(self, url: str, prompts: Sequence[Any], _limit: int, feature: Feature, has: bool) -> None:
        server = self.by_url[url]
        first = (url, has) not in self.asked
        self.asked.append((url, has))
        slow = 100.0 if first else 0.0  # what fills caches
        more = 0.8 if (has and (feature.sampling or feature.body)) or url == self.slow_url else 0.0
        server.clock_s += 3.0  # nobody asked for anything
        server.round(len(prompts) + 1, accept=50.0)
        for _ in range(2):
            server.round(
                len(prompts), gap_ms=1.0 + more / 4, accept=slow + 1.0 + more, verify=10.0 + more, commit_len=2 + has
            )


ARGS = argparse.Namespace(repeats=3, max_new_tokens=4)


def test_what_a_feature_adds_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Servers(monkeypatch).add(tmp_path / "trace")
    cost = feature_cost.measure("penalties", FEATURES["penalties"], (server, server), [[1], [2]], ARGS)
    assert cost.added_ms == pytest.approx(0.8 + 0.2), "in accept and between rounds, not in the verify"
    assert cost.share == pytest.approx(1.0 / 17)
    assert cost.without.round_ms == pytest.approx(17)
    assert cost.having.round_ms == pytest.approx(17 + 0.8 + 0.8 + 0.2)
    assert (cost.without.summary.num_rounds, cost.having.summary.num_rounds, cost.batch_size) == (6, 6, 2)
    assert (cost.without.accept_length, cost.having.accept_length) == (2, 3)
    record = json.loads(json.dumps(cost.to_json()))
    assert (record["feature"], record["added_ms"]) == ("penalties", cost.added_ms)


def test_an_adapter_is_charged_with_the_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Servers(monkeypatch).add(tmp_path / "trace")
    cost = feature_cost.measure("lora", LORA, (server, server), [[1]], ARGS)
    assert cost.added_ms == pytest.approx(0.8 + 0.8 + 0.2)


def test_what_nobody_asks_for_is_told_from_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    bare, enabled = servers.add(tmp_path / "bare"), servers.add(tmp_path / "enabled")
    for slow, added in (("", 0.0), (enabled.url, 1.8)):
        servers.slow_url = slow
        cost = feature_cost.measure("unused", feature_cost.NO_FEATURE, (bare, enabled), [[1]], ARGS)
        assert cost.added_ms == pytest.approx(added)
    assert servers.asked[:4] == [(bare.url, False), (enabled.url, True)] * 2


def test_without_rounds_of_the_batch_size_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Servers(monkeypatch).add(tmp_path / "trace")
    with pytest.raises(ValueError, match="no two rounds had all 2 requests"):
        feature_cost.measure(
            "ends", FEATURES["ends"], (server, server), [[1], [2]], argparse.Namespace(repeats=0, max_new_tokens=4)
        )


def test_only_the_feature_tells_two_requests_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(feature_cost, "post", lambda _url, _path, body: sent.append(body))
    for feature in (*FEATURES.values(), LORA):
        for has in (False, True):
            feature_cost.ask_together("", [[1]], 4, feature, has)
        without, having = sent[-2:]
        assert without == {"input_ids": [1], "sampling_params": without["sampling_params"]}
        assert without["sampling_params"] == {"max_new_tokens": 4, "ignore_eos": True, **feature.beside}
        assert having == {
            **without,
            **feature.body,
            "sampling_params": {**without["sampling_params"], **feature.sampling},
        }
        assert having != without


def test_servers_and_rows_of_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, started = Servers(monkeypatch), []

    @contextmanager
    def running(systems: Sequence[System], common: Common) -> Iterator[list[Any]]:
        started.append({system.name: system.flags for system in systems})
        yield [made.add(tmp_path / f"{len(started)}-{system.name}") for system in systems]

    monkeypatch.setattr(feature_cost, "running", running)
    monkeypatch.setattr(feature_cost, "prepare_pair", lambda *_: SimpleNamespace(model=str(tmp_path), draft="d"))
    monkeypatch.setattr(feature_cost, "encode", lambda *_: {"gsm8k": [[1], [2], [3], [4]]})
    monkeypatch.setattr(feature_cost, "sample_prompts", lambda *_: [])
    output = tmp_path / "out.jsonl"
    assert feature_cost.main(["--repeats", "1", "--output", str(output)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    rows = [(record["feature"], record["batch_size"]) for record in records]
    both = [(name, size) for size in (1, 4) for name in ("unused: switched on", *FEATURES)]
    assert rows == both + [(name, size) for size in (1, 4) for name in ("unused: adapters loaded", "lora")]
    assert [list(one) for one in started] == [["bare", "switched-on"], ["bare", "adapters-loaded"]]
    assert started[0] == {"bare": (), "switched-on": ENABLED}
    assert started[1]["adapters-loaded"][0] == "--lora-paths"
    assert records[-1]["stages"] == list(ALL_STAGES)
    assert records[-1]["share"] == pytest.approx(1.8 / 17)
