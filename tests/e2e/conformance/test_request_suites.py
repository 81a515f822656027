"""All JSON schemas and all sets of penalties of `python -m benchmarks request_suites`, on the tiny pair."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conformance.conftest import Both
from tests.e2e.conformance.exceptions import REFUSED
from tests.e2e.conformance.factors import END

REPO = Path(__file__).resolve().parents[3]
NEEDS = {"grammars": {"grammars"}, "penalties": {"penalties", "min_new_tokens"}}
ANSWERED = [suite for suite, features in NEEDS.items() if not features & REFUSED.keys()]


@pytest.mark.parametrize("suite", ANSWERED)
def test_answers_are_valid_and_plain_decodings(suite: str, both: Both, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks", "request_suites", "--suites", suite, "--output", str(output)]
    command += ["--urls", both.plain.url, both.ddtree.url, "--concurrency", "16", "--likely-end", f"{END}:12"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())["suites"][0]
    verdicts = result["verdicts"]
    assert len(verdicts) >= 100
    assert sum(verdict["is_near_tie"] for verdict in verdicts) <= 2
    assert sum(verdict["is_valid"] is True for verdict in verdicts) >= (85 if suite == "grammars" else 0)
    assert result["accept_length"] > 1.2
