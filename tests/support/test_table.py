"""The list names what is there: families, backends, features, and tests that exist and run; the document shows it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from tests.architecture import ROOT
from tests.device_lane.catalogue import SCENES, SLOW_SCENES
from tests.device_lane.conftest import PAIRS as LANE_PAIRS
from tests.device_lane.conftest import SEES
from tests.device_lane.lifted_catalogue import NEEDED as LIFTED
from tests.support import collected, table
from tests.support.document import DOCUMENT, HEAD, NEEDED_BY, UNSHOWN, document, note_of, render, scene_of
from tests.support.drafters import DRAFTERS
from tests.support.families import FAMILIES
from tests.support.others import OTHERS
from tests.support.pairs_document import pairs_section
from tests.support.published import BACKENDS as PUBLISHED_BACKENDS
from tests.support.published import ENDS, PAIRS, SERVED, TESTS
from tests.support.table import BACKENDS, CPU, FEATURES, ROWS, Refused, Row, Shown

NOT_RUN_BY_DEFAULT = {"slow", "gpu", "skip", "skipif", "xfail"}
"""Marks of tests that a run of everything leaves out, or may."""
SHOWN = [(row, row.cell) for row in ROWS if isinstance(row.cell, Shown)]
_CELLS = [*(row.cell for row in ROWS), *(cell for drafter in DRAFTERS.values() for cell in drafter.cells)]
_REFUSED_WITH = [cell for drafter in DRAFTERS.values() for cell in drafter.refused_with.values()]
NEEDED = [
    *(cell.needed for cell in (*_CELLS, *_REFUSED_WITH) if isinstance(cell, Refused) and cell.needed),
    *(other.needed for other in OTHERS.values() if other.needed),
]
_OF_OTHERS = [table.scene(other.scene) for other in OTHERS.values() if other.scene]
_SLOW_NEEDED = {one.scene.name for one in LIFTED if one.slow}
NAMED = [
    *(Shown(cell.test, note_of(cell)) for cell in _CELLS if isinstance(cell, Shown)),
    *(Shown(test) for name in PAIRS for test in TESTS[name]),
    *(Shown(shown.test, note_of(shown)) for shown in _OF_OTHERS),
    *(
        Shown(f"{NEEDED_BY}::test_scene_goes_wrong_without_the_refusal[{name}]", "slow" if name in _SLOW_NEEDED else "")
        for name in NEEDED
        if "::" not in name
    ),
    *(Shown(name, "skipif without Triton's interpreter") for name in NEEDED if "::" in name),
]


def test_rows_name_what_is_there() -> None:
    assert table.unknown_names() == []
    assert len(set(FEATURES)) == len(FEATURES)


def test_no_combination_is_both_shown_and_refused() -> None:
    for names in product(FAMILIES, BACKENDS, FEATURES):
        kinds = {type(cell) for cell in table.cells(*names)}
        assert len(kinds) < 2, names


def test_no_row_stands_twice() -> None:
    rows = [(row.family, row.backend, row.feature, str(row.cell)) for row in ROWS]
    assert [row for row in rows if rows.count(row) > 1] == []


def test_document_is_written_from_the_list() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m tests.support"


@cache
def collected_tests() -> dict[str, list[str]]:
    """Every test of the files that the list names, with its marks, as pytest itself finds them."""
    files = sorted({cell.test.partition("::")[0] for cell in NAMED})
    target = Path(os.environ.get("PYTEST_XDIST_WORKER", "main")).name
    path = ROOT / f".pytest_cache/support-{target}-{os.getpid()}.json"
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", collected.__name__, *files]
    environment = {**os.environ, collected.VARIABLE: str(path), "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    finally:
        path.unlink(missing_ok=True)


def problem(cell: Shown, tests: dict[str, list[str]]) -> str:
    """What is wrong with the test that a cell names; empty when nothing is."""
    if cell.test not in tests:
        return f"{cell.test} does not exist"
    unsaid = [mark for mark in NOT_RUN_BY_DEFAULT & set(tests[cell.test]) if mark not in cell.note]
    if unsaid:
        return f"{cell.test} is marked {unsaid[0]}; say so in the note"
    is_said_only = "slow" in cell.note and "slow" not in tests[cell.test]
    return f"{cell.test} is said to be slow, and is not marked so" if is_said_only else ""


def test_every_test_that_is_named_exists_and_is_run() -> None:
    assert [found for cell in NAMED if (found := problem(cell, collected_tests()))] == []


@pytest.mark.parametrize(
    ("cell", "tests", "found"),
    [
        (Shown("a::b"), {"a::b": ["e2e"]}, ""),
        (Shown("a::b"), {"a::c": []}, "does not exist"),
        (Shown("a::b"), {"a::b": ["slow"]}, "is marked slow"),
        (Shown("a::b", "slow"), {"a::b": ["slow"]}, ""),
        (Shown("a::b", "slow"), {"a::b": ["skipif", "slow"]}, "is marked skipif"),
        (Shown("a::b", "fp8, slow"), {"a::b": ["e2e"]}, "is said to be slow, and is not"),
    ],
)
def test_a_test_that_is_not_there_or_not_run_is_noticed(cell: Shown, tests: dict[str, list[str]], found: str) -> None:
    assert found in problem(cell, tests)
    assert bool(found) == bool(problem(cell, tests))


def test_whether_a_scene_is_slow_its_catalogue_says_and_no_note() -> None:
    assert [cell for cell in _CELLS if isinstance(cell, Shown) and scene_of(cell) and "slow" in cell.note] == []
    slow, other = SLOW_SCENES[0].name, SCENES[0].name
    assert [note_of(table.scene(name, "fp8")) for name in (slow, other)] == ["fp8, slow", "fp8"]
    assert [render(table.scene(name)).endswith(" (slow)") for name in (slow, other)] == [True, False]


def test_the_pairs_section_tells_of_slow_scenes_by_their_catalogue() -> None:
    scenes = [f"{name}{end}" for name in PAIRS if name not in SERVED for end in ENDS]
    assert not {*scenes} & {scene.name for scene in SLOW_SCENES}
    assert f"All {len(scenes)} servers of the device lane are in CI's runs" in pairs_section(())
    some = pairs_section(scenes[1:2])
    assert f"Of {len(scenes)} servers of the device lane {len(scenes) - 1} are in CI's runs" in some
    assert some.count(" (slow)") == 1
    assert f"{scenes[1]} (slow)" in some


def test_a_refusal_of_which_nothing_shows_the_need_says_so() -> None:
    assert HEAD.count(UNSHOWN) == 1
    assert render(Refused("x")) == f"**refused**: x ({UNSHOWN})"
    assert render(Refused("x", by_sglang=True)) == "**refused** by SGLang: x"
    assert UNSHOWN not in render(Refused("x", needed="refused-outlines"))
    unshown = {cell.why for cell in _CELLS if isinstance(cell, Refused) and not (cell.needed or cell.by_sglang)}
    unshown |= {other.why for other in OTHERS.values() if other.is_refused and not other.needed}
    text = document()
    # Of several refusals of one cell the first is written.
    assert [why for why in unshown if f": {why}" in text and f"{why} ({UNSHOWN})" not in text] == []
    needed = {cell.why for cell in _CELLS if isinstance(cell, Refused) and cell.needed} - unshown
    assert [why for why in needed if f"{why} ({UNSHOWN})" in text] == []


def test_no_test_that_is_named_may_skip_itself() -> None:
    for path in sorted({cell.test.partition("::")[0] for cell in NAMED}):
        calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {"pytest.skip", "pytest.importorskip", "pytest.xfail"}, path


ARCHITECTURES = {
    "qwen3": "Qwen3",
    "llama": "Llama",
    "qwen3_moe": "Qwen3-MoE",
    "gpt_oss": "gpt-oss",
    "qwen3_5": "Qwen3.5 / 3.6",
    "qwen3_5_wide": "Qwen3.5 / 3.6",
    "nemotron_h": "Nemotron-H",
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2-MoE",
    "gemma": "Gemma 4",
    "mellum": "Mellum",
    "deepseek": "DeepSeek / Kimi-K2",
    "kimi_k3": "Kimi-K3",
}
"""Of the lane's pairs, by family."""


def family_of(pair: str) -> str:
    """Of a scene's pair."""
    if pair == SEES:
        return "Qwen3-VL MoE"
    return PAIRS[pair].family if pair in PAIRS else ARCHITECTURES[LANE_PAIRS[pair][0]]


def test_scenes_are_of_the_family_and_backend_of_their_row() -> None:
    scenes = {scene.name: scene for scene in (*SCENES, *SLOW_SCENES)}
    for row, cell in SHOWN:
        if (name := scene_of(cell)) is not None:
            scene = scenes[name]
            assert (scene.algorithm, scene.backend) == ("DDTREE", row.backend), row
            assert family_of(scene.pair) == row.family, row


def test_the_lane_is_not_the_cpu_platform() -> None:
    for row, cell in SHOWN:
        folder = cell.test.split("/")[1]
        assert row.backend == CPU or folder == "device_lane", row
        assert row.backend != CPU or folder != "device_lane", row


def test_refused_means_the_same_message_wherever_it_stands() -> None:
    assert all(row.cell.why for row in ROWS if isinstance(row.cell, Refused))
    row = Row("Llama", "*", "ends", Refused("x"))
    assert row.covers("Llama", "fa3", "ends")
    assert not row.covers("Qwen3", "fa3", "ends")
    assert not row.covers("Llama", "fa3", "streams")


def test_fifteen_pairs_are_listed_and_each_is_run_where_its_family_is_served() -> None:
    assert len(PAIRS) == len(TESTS) == 15
    assert {pair.family for pair in PAIRS.values()} <= set(FAMILIES)
    for name, pair in PAIRS.items():
        backend = PUBLISHED_BACKENDS.get(pair.family, CPU)
        assert table.refused_target(pair.family, backend) is None, name
        assert any((row.family, row.backend, row.feature) == (pair.family, backend, table.GREEDY) for row, _ in SHOWN)


def test_each_pair_has_two_trees_and_a_chain_that_are_asked_the_same() -> None:
    scenes = {scene.name: scene for scene in (*SCENES, *SLOW_SCENES)}
    for name, pair in PAIRS.items():
        if name in SERVED:
            continue
        found = [scenes[f"{name}{end}"] for end in ENDS]
        assert [(one.algorithm, one.budget) for one in found] == [("DDTREE", 16), ("DDTREE", 7), ("DFLASH", None)]
        assert {(one.pair, one.backend, one.asked_as) for one in found} == {
            (name, PUBLISHED_BACKENDS[pair.family], name)
        }
        assert len({one.waves for one in found}) == 1
