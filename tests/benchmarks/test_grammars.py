"""Rounds that the benchmark of grammars plays: whole answers, and no fewer tokens a round for fewer wasted nodes."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.sglang


def test_every_kind_of_tree_emits_the_answer_and_pruned_ones_in_fewer_rounds() -> None:
    from benchmarks.grammars import KINDS, play
    from ddtree_sglang.core.candidates import DraftCandidates
    from tests.core.grammar_toys import Countdown, open_rows

    # With this much left the grammar allows small tokens alone, and the drafter likes large ones.
    tokens, depth = [0, 1, 0, 0, 1, 0, 0, 0], 3
    ids = torch.tensor([40, 30, 50, 1, 0, 2]).expand(len(tokens), depth, 6).contiguous()
    logprobs = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.1, 0.05]).log().expand(len(tokens), depth, 6).contiguous()
    rounds = {}
    for kind in KINDS:
        left = sum(token + 1 for token in tokens)
        played = list(play(kind, 6, tokens, DraftCandidates(ids, logprobs), Countdown(left, True), open_rows(6)))
        assert sum(emitted for emitted, _, _ in played) == len(tokens) - 1
        rounds[kind] = len(played)
    assert rounds["free"] >= rounds["roots"] > rounds["nodes"]


def test_schemas_are_those_that_servers_are_asked_for() -> None:
    from benchmarks.grammars import ASKED, questions
    from benchmarks.harness.request_cases import grammar_cases

    assert questions("few") == ASKED
    asked = [schema for _, kind, schema in questions("schemas") if kind == "json"]
    assert asked == [case.sampling["json_schema"] for case in grammar_cases()]
