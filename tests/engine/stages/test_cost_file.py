"""Tables of costs on disk: of one kind of server each, a hint and no more."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.engine.stages import cost_file
from ddtree_sglang.engine.stages.cost_file import (
    ASKED_SECONDS,
    FOLDER_ENV,
    SAVE_ROUNDS,
    CostFile,
    cost_folder,
    machine_facts,
)

SPOILED = [
    "",
    "{",
    "[]]",
    "null",
    '{"cells": 3}',
    '{"cells": [[1, 9, 0, -1]]}',
    "[[1, 9, 0, 1" + "0" * 400 + "]]",
    "\x00\xff",
]
FACTS = {"model_path": "m", "dtype": "float32"}


def known() -> CostModel:
    model = CostModel()
    for _ in range(2):
        model.observe(1, 100, 9, 0.03)
    return model


def test_what_was_seen_once_is_not_kept(tmp_path: Path) -> None:
    """It may hold what is done once, and the next server would believe it."""
    model = known()
    model.observe(8, 100, 9, 0.9)
    CostFile.of(FACTS, tmp_path).save(model)
    assert set(CostFile.of(FACTS, tmp_path).load().cells) == {(1, 9, 0)}


def test_a_table_is_found_by_a_server_of_the_same_kind_alone(tmp_path: Path) -> None:
    CostFile.of(FACTS, tmp_path).save(known())
    assert CostFile.of(dict(reversed(FACTS.items())), tmp_path).load().cells == pytest.approx(
        {(1, 9, 0): 0.03}, rel=2e-3
    )
    assert CostFile.of({**FACTS, "dtype": "bfloat16"}, tmp_path).load().cells == {}


def test_a_table_says_what_it_is_of(tmp_path: Path) -> None:
    CostFile.of(FACTS, tmp_path / "new").save(known())
    (path,) = (tmp_path / "new").iterdir()
    held = json.loads(path.read_text(encoding="utf-8"))
    assert held["facts"] == FACTS
    assert held["cells"] == [[1, 9, 0, pytest.approx(0.03, rel=2e-3)]]


@pytest.mark.parametrize("text", SPOILED)
def test_a_spoiled_table_is_measured_anew(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CostFile.of(FACTS, tmp_path)
    assert file.path is not None
    file.path.write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert file.load().cells == {}
    assert "cannot be read" in caplog.text
    file.save(known())
    assert file.load().cells == pytest.approx({(1, 9, 0): 0.03}, rel=2e-3)


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    file = CostFile.of(FACTS, tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        file.save(known())
        file.save(known())
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "file").unlink()
    file.save(known())
    assert file.load().cells, "a disk that was full for a while is written again"


def test_what_cannot_be_put_in_place_is_not_left_behind(tmp_path: Path) -> None:
    file = CostFile.of(FACTS, tmp_path)
    assert file.path is not None
    file.path.mkdir()
    file.save(known())
    assert list(tmp_path.iterdir()) == [file.path]


def test_who_asks_often_has_it_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(cost_file.time, "monotonic", lambda: now)
    file = CostFile.of(FACTS, tmp_path)
    assert file.path is not None
    file.save_asked(CostModel())
    assert not file.path.exists(), "nothing is known yet, and what comes soon can be written"
    model = known()
    file.save_asked(model)
    file.path.unlink()
    model.observe(1, 100, 9, 0.03)
    now += ASKED_SECONDS - 1
    file.save_asked(model)
    assert not file.path.exists()
    now += 1
    file.save_asked(model)
    assert file.path.exists()
    file.path.unlink()
    now += ASKED_SECONDS
    file.save_asked(model)
    assert not file.path.exists(), "nothing was learned since"


def test_it_is_saved_now_and_then(tmp_path: Path) -> None:
    file = CostFile.of(FACTS, tmp_path)
    for _ in range(SAVE_ROUNDS - 1):
        file.count_round(known())
    assert list(tmp_path.iterdir()) == []
    file.count_round(known())
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_ENV, " ")
    assert cost_folder() is None
    file = CostFile.of(FACTS, cost_folder())
    file.save(known())
    assert file.load().cells == {}
    monkeypatch.setenv(FOLDER_ENV, "~/here")
    assert cost_folder() == Path.home() / "here"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_ENV, raising=False)

    def expanduser(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert cost_folder() is None


def test_facts_of_a_machine_are_json() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["threads"] >= 1
