"""The controller's time: rounds are played through, are the same ones each time, and other decisions are told."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import controller_time
from benchmarks.controller_time import RESULTS, STAGES, Forwards, main, measured

TRACE, COSTS = RESULTS / "replay-20261129.jsonl.gz", RESULTS / "costs-20261129-float32.json"


def test_rounds_are_drafted_narrowed_and_ended_the_same_way_each_time() -> None:
    rows: list[int] = []

    class Counted(Forwards):
        def run(self, rows_of: int, layers: int | None = None) -> Any:
            rows.append(rows_of)
            return super().run(rows_of, layers)

    first, second = (measured(2, 20, TRACE, COSTS, Counted(1, 8)) for _ in range(2))
    assert all(first[stage] > 0 for stage in STAGES)
    assert first["medians"] == pytest.approx(sum(first[stage] for stage in STAGES))
    assert len(rows) > 60, "most rounds draft, so they have two forwards"
    assert first["decided"] == second["decided"]
    assert first["decided"] != measured(1, 20, TRACE, COSTS, Counted(1, 8))["decided"]


@pytest.mark.parametrize(("other", "status"), [("a", 0), ("b", 1)])
def test_checkouts_that_decide_differently_are_told(
    other: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(build: str, decided: str, begin: float) -> dict[str, Any]:
        return {"requests": 1, "build": build, "decided": decided, "begin": begin, "medians": begin, "means": begin}

    told = [line("this", "a", 1.0), line("other", other, 9.0), line("this", "a", 3.0), line("this", "a", 2.0)]
    monkeypatch.setattr(controller_time, "turns", lambda _: told)
    assert main(["--requests", "1"]) == status
    shown = capsys.readouterr().out
    assert "1 requests, this: begin 2, " in shown
    assert ("decisions differ" in shown) == bool(status)
