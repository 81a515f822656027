"""Tables of costs: what is read of them, and what they say, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.calibration.table import CostTable, CostTableError, cliffs, context_name, outdone
from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.engine.stages.cost_file import CostFile
from tests.calibration.cases import held


def test_times_break_even_and_rates_are_those_of_the_cells() -> None:
    table = CostTable.of(held(), "here")
    assert table.contexts() == [0, 1]
    assert table.sizes(0) == [1, 4]
    assert table.curve(0, 1) == pytest.approx({1: 0.020, 2: 0.024, 5: 0.025, 9: 0.040, 17: 0.038})
    assert table.break_even(0, 1) == pytest.approx({1: 1.0, 2: 1.2, 5: 1.25, 9: 2.0, 17: 1.9})
    assert table.break_even(1, 4) == {}, "plain decoding was not measured there"
    # One request: 1 token in 20 ms, 1 + 0.5 in 24, 1 + 1 in 25, 1 + 1.5 in 40, 1 + 2 in 38.
    assert table.rates(0, 1) == pytest.approx({1: 50.0, 2: 62.5, 5: 80.0, 9: 62.5, 17: 3 / 0.038})
    assert table.rates(0, 4) == pytest.approx({1: 4 / 0.030, 2: 6 / 0.040})


def test_a_jump_is_a_cliff_and_what_a_wider_round_outdoes_is_told() -> None:
    curve = CostTable.of(held(), "here").curve(0, 1)
    assert cliffs(curve) == {9}
    assert outdone(curve) == {9}
    assert cliffs({1: 1.0, 2: 1.3, 3: 1.4, 4: 1.5, 5: 1.6}) == set(), "the drafter's forward, then a straight line"
    assert outdone({1: 9.0, 2: 1.0, 3: 1.1}) == set(), "plain decoding is no draft"
    assert cliffs({1: 1.0, 2: 2.0}) == set()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    table = CostTable.of(held(), "here")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_json()))
    again = CostTable.load(path)
    assert again.seconds == pytest.approx(dict(table.seconds))
    assert (again.drafted, again.facts) == (table.drafted, table.facts)


def test_a_file_that_a_server_keeps_is_a_table(tmp_path: Path) -> None:
    model = CostModel()
    for _ in range(5):
        model.observe(2, 100.0, 5, 0.03)
    file = CostFile.of({"model_path": "m"}, tmp_path)
    file.save(model)
    assert file.path is not None
    table = CostTable.load(file.path)
    assert table.seconds == pytest.approx({(0, 2, 5): 0.03}, rel=2e-3)
    assert table.facts["model_path"] == "m"
    assert table.drafted == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nothing", "as JSON"),
        ("{}", "must hold a table of costs"),
        ('{"cells": []}', "must hold costs of rounds, got none"),
        ('{"cells": [[1, 1, 0]]}', "must be [requests, nodes, context, seconds]"),
        ('{"cells": [[1, 1, 0, -1.0]]}', "seconds must be from"),
        ('{"cells": [[1, 1, 0, 1.0]], "nodes": [1, 2], "drafted": [0.0]}', "must hold a table of costs"),
        ('{"cells": [[1, 1, 0, 1.0]], "nodes": [1], "drafted": ["x"]}', "must hold a table of costs"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(CostTableError, match="must hold") as refused:
        CostTable.load(path)
    assert told in str(refused.value)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CostTableError, match="must be a readable file"):
        CostTable.load(tmp_path / "none.json")


@pytest.mark.parametrize(("context", "name"), [(0, "up to 256"), (1, "512"), (3, "2,048")])
def test_contexts_have_names(context: Any, name: str) -> None:
    assert name in context_name(context)
