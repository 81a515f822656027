"""A table is checked once against the same bytes, and again as soon as one of them, the table or a name has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ddtree_sglang.contract import known, source, start
from ddtree_sglang.contract.check import Row
from ddtree_sglang.contract.start import require
from ddtree_sglang.exceptions import EngineContractError

ROWS = (Row("toy.one", "function", "a b", "ours"), Row("toy.two", "Class", "field", "ours"))
CHECKED: list[int] = []


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, and an empty folder of what is known."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("def function(a, b): pass\n")
    (folder / "two.py").write_text("from toy.three import Class\n")
    (folder / "three.py").write_text("class Class:\n    field: int\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DDTREE_CACHE", str(tmp_path / "cache"))
    source._folders_of.cache_clear()
    CHECKED.clear()
    stock = start.mismatches

    def mismatches(rows: Iterable[Row], engine: source.Source) -> list[str]:
        listed = list(rows)
        CHECKED.append(len(listed))
        return stock(listed, engine)

    monkeypatch.setattr(start, "mismatches", mismatches)
    return folder


def test_the_second_check_of_the_same_bytes_reads_no_syntax(toy: Path) -> None:
    require(ROWS)
    require(ROWS)
    assert CHECKED == [2, 0]


@pytest.mark.parametrize("file", ["one.py", "two.py", "three.py"])
def test_a_file_that_was_read_and_changed_is_checked_again(file: str, toy: Path) -> None:
    """The third was read because the second imports from it."""
    require(ROWS)
    (toy / file).write_text("# nothing is left\n")
    with pytest.raises(EngineContractError):
        require(ROWS)
    assert CHECKED == [2, 2]


def test_a_file_that_is_gone_or_new_in_its_place_is_checked_again(toy: Path) -> None:
    require(ROWS)
    (toy / "one.py").unlink()
    (toy / "one").mkdir()
    (toy / "one/__init__.py").write_text("def function(a): pass\n")
    with pytest.raises(EngineContractError, match=r"no \['b'\]"):
        require(ROWS)


def test_what_does_not_hold_is_never_known(toy: Path) -> None:
    (toy / "one.py").write_text("")
    for _ in range(2):
        with pytest.raises(EngineContractError):
            require(ROWS)
    assert CHECKED == [2, 2]


def test_another_table_or_checker_is_checked_anew(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(ROWS)
    require(ROWS[:1])
    monkeypatch.setattr(known, "_checker", lambda: "another")
    require(ROWS)
    assert CHECKED == [2, 1, 2]


def test_compiled_names_are_always_looked_up(toy: Path) -> None:
    compiled = Row("json", "no_such_function", compiled=True, why="ours")
    for _ in range(2):
        with pytest.raises(EngineContractError, match="no_such_function"):
            require((*ROWS, compiled))
    require((*ROWS, compiled._replace(name="dumps")))
    require((*ROWS, compiled._replace(name="dumps")))
    assert CHECKED == [3, 3, 3, 1]


BROKEN: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda file: file.write_text("{"),
    "no object": lambda file: file.write_text("[1]"),
    "empty": lambda file: file.write_text("{}"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "a path without a package": lambda file: file.write_text(json.dumps({"": "x", "toy": "y"})),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_read_is_checked_anew(how: str, toy: Path, tmp_path: Path) -> None:
    require(ROWS)
    (file,) = (tmp_path / "cache/contract").iterdir()
    BROKEN[how](file)
    require(ROWS)
    assert CHECKED == [2, 2]


def test_a_folder_that_cannot_be_written_changes_nothing(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    require(ROWS)
    require(ROWS)
    assert CHECKED == [2, 2]


def test_a_checker_without_a_source_keeps_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an archive, or compiled."""
    monkeypatch.setattr(known.check, "__file__", str(tmp_path / "packed.zip/check.py"))
    known._checker.cache_clear()
    try:
        require(ROWS)
        require(ROWS)
    finally:
        known._checker.cache_clear()
    assert CHECKED == [2, 2]
    assert not (tmp_path / "cache").exists()


def test_environments_that_share_a_folder_do_not_replace_each_others(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(ROWS)
    with monkeypatch.context() as other:
        other.setattr(known.sys, "prefix", "/another")
        require(ROWS)
    require(ROWS)
    assert CHECKED == [2, 2, 0]


def test_a_user_without_a_home_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_path: Path) -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("DDTREE_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert known.contract_folder() is None
    assert not known.Known(ROWS, None).holds()
    known.Known(ROWS, None).keep({})
