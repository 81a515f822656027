"""What is timed is what a round does, and can be timed again: requests and runs stay as they are."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import end_cost
from ddtree_sglang.engine import run_ends
from tests.e2e.servers import Pair

pytestmark = pytest.mark.sglang


def test_every_case_leaves_its_requests_and_runs_as_they_were(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.utils.hf_transformers.tokenizer import get_tokenizer

    judged: list[Any] = []
    original = run_ends.judge
    monkeypatch.setattr(run_ends, "judge", lambda req, run: judged.append(original(req, run)) or judged[-1])
    for _, run in end_cost.cases(3, get_tokenizer(pair.model)):
        run()
        run()
    assert len(judged) == 6
    assert all(one.finished_reason is None and len(one.token_ids) == end_cost.RUN_LEN for one in judged)
