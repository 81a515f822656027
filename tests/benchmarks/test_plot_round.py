"""A round's record is the trace's, and its picture shows it."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import plot_round, record_round
from benchmarks.harness.provenance import REPO

RECORD = next((REPO / "benchmarks/results").glob("round-*.json"))
PICTURE = REPO / "ddtree_sglang/docs/round.svg"


# 0 ─┬─ 1 ─┬─ 2 ── 5      first children: 1, 2, 5
#    │     └─ 4
#    └─ 3
PARENTS = [-1, 0, 1, 0, 1, 2, -1]


def line(path: list[int], emitted: list[int]) -> dict[str, Any]:
    return {
        "token_ids": [[100, 101, 102, 103, 104, 105, 0]],
        "parents": [PARENTS],
        "depths": [[0, 1, 2, 1, 2, 3, 0]],
        "path_probs": [[1.0, 0.6, 0.5, 0.3, 0.1, 0.05, 0.0]],
        "accept_index": [[*path, *[-1] * (4 - len(path))]],
        "emitted_ids": [[*emitted, *[0] * (4 - len(emitted))]],
        "commit_lens": [len(path)],
    }


@pytest.mark.parametrize(("path", "expected"), [([0], 1), ([0, 1], 2), ([0, 1, 2, 5], 4), ([0, 1, 4], 2), ([0, 3], 1)])
def test_chain_emits_as_long_as_the_path_keeps_to_first_choices(path: list[int], expected: int) -> None:
    assert record_round.chain_length(line(path, path)) == expected


def test_round_with_the_largest_gain_over_the_chain_is_recorded() -> None:
    lines = [line([0, 1, 2, 5], [101, 102, 105, 9]), line([0, 1, 4], [101, 104, 8]), line([0, 3], [103, 7])]
    chosen = record_round.choose_round(lines)
    assert chosen == 1, "gains are 0, 1 and 1; the second emits more than the third"
    record = record_round.round_record(lines, 50, chosen, lambda ids: " ".join(map(str, ids)), "ask")
    # The prefill's token and the first round's, without the last of them, which is this round's root.
    assert record["answer_before"] == "50 101 102 105"
    assert (record["commit_len"], record["chain_commit_len"], record["bonus_token"]) == (3, 2, "8")
    assert record["path"] == [0, 1, 4]
    assert [node["parent"] for node in record["nodes"]] == PARENTS[:-1], "padding is left out"
    assert record["answer_accept_length"] == 3.0
    assert record["answer_chain_accept_length"] == round((4 + 2 + 1) / 3, 3)


def test_recorded_round_is_a_tree_whose_path_the_picture_marks() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    drawn = plot_round.boxes(record)
    assert [n for n, box in enumerate(drawn) if box.kind == "accepted"] == record["path"][1:]
    assert len({(box.depth, box.row) for box in drawn}) == len(drawn), "no two nodes in one place"
    assert len(record["path"]) == record["commit_len"]
    probs = [node["path_prob"] for node in record["nodes"]]
    assert probs == sorted(probs, reverse=True)
    picture = plot_round.svg(record)
    texts = [unescape(element.text or "") for element in ElementTree.fromstring(picture).iter() if element.text]
    for node in record["nodes"]:
        assert plot_round.visible(node["token"]) in texts


def test_documents_show_the_recorded_round() -> None:
    """The picture is drawn from the record: `python -m benchmarks plot_round RECORD --output PICTURE`."""
    assert PICTURE.read_text(encoding="utf-8") == plot_round.svg(json.loads(RECORD.read_text(encoding="utf-8")))


def test_command_writes_the_picture_beside_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "round.json"
    record.write_bytes(RECORD.read_bytes())
    assert plot_round.main([str(record)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "round.svg")
    assert ElementTree.parse(tmp_path / "round.svg").getroot().tag.endswith("svg")
