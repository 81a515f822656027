"""Hundreds of one seed and one set of flags become one line, and none of them is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz_results
from tests.fuzz.cases import Case
from tests.fuzz.run import Outcome, Report


def line(seed: int, flags: list[str], statuses: dict[int, int], failures: list[str]) -> dict[str, Any]:
    """As `python -m tests.fuzz --output` writes it."""
    report = Report(failures=failures, canaries=5, seconds=2.5)
    for status, count in statuses.items():
        for number in range(count):
            case = Case(number, "POST", "/generate", b"", expects_answer=status == 200)
            report.add(Outcome(case, status, '{"error": {"message": "why"}}' if status == 500 else "{}", 0.5))
    asked = {"bench": "fuzz", "algorithm": "DDTREE", "flags": flags, "seed": seed, "first": 0, "valid_share": 0.2}
    return {**asked, **report.record()}


def test_hundreds_are_summed_by_seed_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_results, "collect_provenance", lambda: {"commit": "abc"})
    runs = [
        line(1, ["--page-size", "16"], {200: 3, 400: 2}, []),
        line(1, ["--page-size", "16"], {200: 1, 500: 2}, ["no answer"]),
        line(2, ["--lora-paths", "one=/somewhere/one", "/elsewhere/two"], {200: 1}, []),
    ]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(json.dumps(one) + "\n" for one in runs[:1]))
    second.write_text("".join(json.dumps(one) + "\n" for one in runs[1:]))
    output = tmp_path / "out.jsonl"
    assert fuzz_results.main([str(first), str(second), "--output", str(output)]) == 0
    paged, plain = [json.loads(one) for one in output.read_text().splitlines()]
    assert (paged["flags"], paged["seed"], paged["hundreds"], paged["requests"]) == (["--page-size", "16"], 1, 2, 8)
    assert paged["statuses"] == {"200": 4, "400": 2, "500": 2}
    assert (paged["valid_answered"], paged["canaries"], paged["seconds"]) == (4, 10, 5.0)
    assert paged["errors"] == {"500 POST /generate: why": 2}
    assert (paged["failures"], paged["commit"]) == (["no answer"], "abc")
    assert (plain["seed"], plain["requests"], plain["failures"]) == (2, 1, [])
    assert plain["flags"] == ["--lora-paths", "one=one", "two"]
