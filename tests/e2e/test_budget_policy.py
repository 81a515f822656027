"""Policies through real servers: the load limits the nodes, measured costs choose them, and tokens stay the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.cli import main
from ddtree_sglang.cpu_platform.names import DRAFTS_ENV
from ddtree_sglang.engine.stages.cost_file import FOLDER_ENV
from tests.e2e.asking import PROMPTS, ask, ask_all, metrics, rounds_of
from tests.e2e.servers import Server

MAX_NEW_TOKENS = 32


def test_budget_follows_the_batch_and_tokens_do_not(plain: Server, serve: Callable[..., Any]) -> None:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}
    expected = [ask(plain.url, prompt, **options)["output_ids"] for prompt in PROMPTS]
    with serve("DDTREE", 16, "--speculative-ddtree-verify-tokens", "9", policy="load") as server:
        for at_once in (1, 2, 8):
            answers = ask_all(server.url, PROMPTS, at_once, **options)
            assert [answer["output_ids"] for answer in answers] == expected
        rounds = rounds_of(server.trace)
    seen = {one["batch_size"]: one["num_nodes"] for one in rounds}
    assert seen[1] == 9
    assert seen[2] == 3
    assert seen[8] == 1
    assert all(one["draft_ms"] == 0 for one in rounds if one["num_nodes"] == 1)
    assert any(max(one["commit_lens"]) > 1 for one in rounds if one["num_nodes"] > 1)


def test_without_a_policy_measured_costs_choose_the_budget_and_tokens_stay(
    plain: Server, serve: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}
    expected = [ask(plain.url, prompt, **options)["output_ids"] for prompt in PROMPTS]
    # Longer than the default: a machine that is busy has not come to two requests by then.
    flags = ("--speculative-ddtree-measure-seconds", "40")
    costs = tmp_path / "costs"
    environment = ((DRAFTS_ENV, ""), (FOLDER_ENV, str(costs)))
    as_users_do: dict[str, Any] = {"as_users_do": True, "environment": environment}
    with serve("DDTREE", None, *flags, "--enable-metrics", policy=None, **as_users_do) as server:
        log = server.log.read_text(encoding="utf-8")
        assert log.count("CPU platform: drafts multiply") == 2 * torch.ops.mkldnn._is_mkldnn_bf16_supported()
        own = rounds_of(server.trace)
        assert {(1, 1), (1, 2), (1, 3), (1, 5), (2, 1)} <= {(one["batch_size"], one["num_nodes"]) for one in own}
        for at_once in (1, 3, 8):
            answers = ask_all(server.url, PROMPTS, at_once, **options)
            assert [answer["output_ids"] for answer in answers] == expected
        narrow = ask(server.url, PROMPTS[0], **options, custom_params={"ddtree": {"budget": 2}})
        assert narrow["output_ids"] == expected[0]
        rounds = rounds_of(server.trace)[len(own) :]
        kept = tmp_path / "costs.json"
        asked = ["--requests", "2", "--nodes", "4", "9", "--rounds", "3", "--output", str(kept)]
        assert main(["calibrate", server.url, *asked]) == 0
        calibrated = rounds_of(server.trace)[len(own) + len(rounds) :]
        told = decisions_of(server.url)
    assert len(rounds) - 20 <= told["rounds"] <= len(rounds) + len(calibrated) + 20, "a quarter of a second is not told"
    assert told["expected_tokens"] > 0.3 * told["realised_tokens"] > 10
    assert 0.2 < told["expected_round_seconds"] / told["measured_round_seconds"] < 5
    whole = [one["num_nodes"] for one in calibrated if one["batch_size"] == 2]
    assert set(whole) == {4, 9}
    assert min(whole.count(4), whole.count(9)) >= 3
    table = CostTable.load(kept)
    assert {(0, 2, 4), (0, 2, 9)} <= table.seconds.keys()
    took = [one["total_ms"] for one in calibrated if (one["batch_size"], one["num_nodes"]) == (2, 9)]
    # Seconds of these rounds, and not of others; two slow rounds in a row move a table's level for a while.
    assert 0.5 * min(took) < 1e3 * table.seconds[0, 2, 9] < 2 * max(took)
    assert "tree" in {one["decision"] for one in rounds}
    assert len({one["num_nodes"] for one in rounds}) > 3
    assert all((one["draft_ms"] == 0) == one["decision"].startswith("plain") for one in rounds)
    assert all(one["expected_ms"] > 0 and one["expected_tokens"] >= one["batch_size"] for one in rounds)
    measured = [one["measured"]["ms"] for one in rounds if "measured" in one]
    assert len(measured) > len(rounds) / 2
    assert median(measured) > median(one["total_ms"] for one in rounds), "the scheduler's work counts"
    assert max(one["num_nodes"] for one in rounds[-5:]) <= 3, "the last answer allowed itself three nodes"
    assert len(list(costs.iterdir())) == 1
    poisoned: set[Path] = set()
    for _ in range(3):
        for file in set(costs.iterdir()) - poisoned:
            poison(file)
            poisoned.add(file)
        with serve("DDTREE", None, *flags, policy=None, **as_users_do) as server:
            log = server.log.read_text(encoding="utf-8")
            if not any(f"are known from {file}" in log for file in poisoned):
                # Beside other work another form of its products may seem faster, whose costs are another file.
                continue
            own = rounds_of(server.trace)
            for at_once in (1, 3):
                answers = ask_all(server.url, PROMPTS, at_once, **options)
                assert [answer["output_ids"] for answer in answers] == expected
            decided = [one["decision"] for one in rounds_of(server.trace)[len(own) :]]
            break
    else:
        pytest.fail("no server began with costs that are known")
    assert sum(one.startswith("tree") for one in decided) > 10, "trees are not as dear as the file says"


def poison(file: Path) -> None:
    """Have a file of costs say that trees are five times as dear as they were."""
    held = json.loads(file.read_text(encoding="utf-8"))
    place = held["columns"].index("nodes")
    cells = [[*cell[:-1], cell[-1] * (5 if cell[place] > 1 else 1)] for cell in held["cells"]]
    file.write_text(json.dumps({**held, "cells": cells}), encoding="utf-8")


def decisions_of(url: str) -> dict[str, float]:
    """The policy's gauges, by their names behind `ddtree_`; rounds of all decisions together."""
    found: dict[str, float] = {}
    for line in metrics(url, "ddtree_"):
        if match := re.match(r"ddtree_(\w+)\{.*\} (\S+)$", line):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found
