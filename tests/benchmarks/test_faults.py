"""`faults` from flags to files, with made-up rounds: what is run, in which order, what is kept, the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import faults


class Machine:
    """Rounds asked for, whether the cluster was stopped, and what every answer is like."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.stopped = 0
        self.same_text = True
        self.interrupt_at: int | None = None

    def one_round(self, _url: str, fault: faults.Fault, number: int) -> faults.Round:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append((fault.name, number))
        return faults.Round(fault.name, number, 10, True, self.same_text, True, [], 1.0, 2.0, 3.0)

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made_up = Machine()
    monkeypatch.setattr(faults, "start", lambda _args: "")
    monkeypatch.setattr(faults, "wait_until_ready", lambda *_: None)
    monkeypatch.setattr(faults, "one_round", made_up.one_round)
    monkeypatch.setattr(faults, "stop", made_up.stop)
    return made_up


def flags(output: Path) -> list[str]:
    return ["--model", "m", "--draft", "d", "--rounds", "2", "--faults", "prefill", "--output", str(output)]


def test_a_run_that_was_broken_off_goes_on_where_it_was(machine: Machine, tmp_path: Path) -> None:
    output = tmp_path / "faults.jsonl"
    machine.interrupt_at = 3
    assert faults.main(flags(output)) == 130
    assert len(faults.rounds_of(output)) == 3
    machine.asked, machine.interrupt_at = [], None
    assert faults.main(flags(output)) == 0
    assert machine.asked == [("replica killed, prefill", 1)], "each fault about as often: round 0 of both came first"
    assert machine.stopped == 2
    assert "| rank killed, prefill | 2 | 2 | 0 | 0 | 10.0 (10.0) |" in output.with_suffix(".md").read_text()
    assert ["provenance" in json.loads(line) for line in output.read_text().splitlines()].count(True) == 2


def test_an_answer_that_differs_fails_the_run(machine: Machine, tmp_path: Path) -> None:
    machine.same_text = False
    assert faults.main(flags(tmp_path / "faults.jsonl")) == 1
    assert machine.stopped == 1
