"""A server whose drafter never hits answers rightly, and says so once, after a thousand rounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.cli import main
from ddtree_sglang.engine.pair_watch import METRIC, ROUNDS
from ddtree_sglang.viewer.statistics import tokens_per_round
from ddtree_sglang.viewer.trace_file import Trace
from tests.device_lane.pairs import random_prompts
from tests.e2e.asking import ask_all, metrics
from tests.e2e.servers import Pair
from tests.support.published import PAIRS
from tests.support.tiny import make_tiny

VOCABULARY = 2048
AT_ONCE, NUM_TOKENS = 16, 80


def test_a_drafter_that_never_hits_is_told_of_once(
    serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Untrained, with a large vocabulary and a rotation of its own."""
    pair = make_tiny(tmp_path_factory.mktemp("wrong"), PAIRS["Qwen3-8B"], vocabulary=VOCABULARY, training_steps=0)
    config = Path(pair.draft) / "config.json"
    drafter = json.loads(config.read_text())
    config.write_text(json.dumps({**drafter, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}))
    prompts = [random_prompts(1, 6, seed)[0].tolist() for seed in range(AT_ONCE)]
    with serve("DDTREE", 16, "--enable-metrics", pair=Pair(pair.model, pair.draft)) as server:
        told: list[list[str]] = []
        for count in (AT_ONCE // 2, AT_ONCE, AT_ONCE):
            ask_all(server.url, prompts[:count], AT_ONCE, max_new_tokens=NUM_TOKENS, ignore_eos=True)
            log = server.log.read_text(encoding="utf-8")
            told.append([line for line in log.splitlines() if f"{ROUNDS} rounds emitted 1.0" in line])
        exported = metrics(server.url, METRIC)
        assert main(["top", server.url, "--once"]) == 0
    shown = capsys.readouterr().out
    assert [len(lines) for lines in told] == [0, 1, 1]
    assert "rope_theta is 10000.0, the target's 1000000.0" in told[-1][0]
    assert "may not fit each other; rope parameters:" in log
    assert len(exported) == 1
    assert exported[0].endswith(" 1.0")
    # What a person sees of it: of the running server, and of its trace afterwards.
    assert re.search(r"^accept length +1\.0", shown, re.M)
    assert re.search(r"^most nodes \(N\) +17 ", shown, re.M)
    assert re.search(rf"^  {METRIC} +1$", shown, re.M)
    trace = Trace(server.trace)
    assert (len(trace.runs), trace.skipped) == (1, {})
    assert trace.runs[0].server["model"] == pair.model
    assert tokens_per_round(trace.runs[0].rounds) == pytest.approx(1.0, abs=0.05)
