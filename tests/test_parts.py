"""The run of the parts: a table in the end whatever failed, and no test left out of the full run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.parts import CHECKS, FAST_FOLDERS, FULL, PYTEST, REPO, Part, main, run, run_part


def python(title: str, code: str, **environment: str) -> Part:
    return Part(title, (sys.executable, "-c", code), environment)


def test_table_ends_the_run_though_a_part_failed(capfd: pytest.CaptureFixture[str]) -> None:
    parts = (python("first", "raise SystemExit(5)"), python("second", "print('second ran')"))
    assert run(parts) == 1
    output = capfd.readouterr().out
    assert "second ran" in output
    rows = [line.split() for line in output.split("== parts and seconds\n")[1].splitlines()]
    assert [(row[0], row[2], row[4:]) for row in rows[:2]] == [
        ("first", "s", ["cores", "FAILED", "(5)"]),
        ("second", "s", ["cores", "ok"]),
    ]
    assert rows[2] == ["all", "parts", rows[2][2], "s"]


def test_cores_that_a_part_keeps_busy_are_told() -> None:
    spin = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    assert run_part(python("spins", spin)).cores > 0.3


def test_run_without_failures_ends_with_status_0(capfd: pytest.CaptureFixture[str]) -> None:
    part = python("one", "import os; print(os.environ['ADDED'], 'PATH' in os.environ)", ADDED="x")
    assert run((part,)) == 0
    assert "x True" in capfd.readouterr().out


def test_ctrl_c_still_prints_the_parts_that_ran(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run

    def interrupted(command: list[str], **options: object) -> object:
        if command == ("stop",):
            raise KeyboardInterrupt
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert run((python("one", ""), Part("two", ("stop",)), python("three", "print('ran')"))) == 130
    output = capfd.readouterr().out
    assert "one" in output.split("== parts and seconds\n")[1]
    assert "ran" not in output


def test_other_arguments_go_to_pytest_and_its_status_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert main(["tests/no_such_file.py", "-q"]) == 4


def test_full_run_leaves_nothing_out() -> None:
    """What one part ignores another names; a folder that two parts name is parted by their markers."""
    words = {part.title: set(part.command) for part in FULL}
    ignored = {one.removeprefix("--ignore=") for part in words.values() for one in part if one.startswith("--ignore=")}
    by_place: dict[str, set[str]] = {}
    for part in FULL:
        for word in part.command:
            if word.startswith("tests/"):
                by_place.setdefault(word, set()).add(part.command[part.command.index("-m", 3) + 1])
    assert ignored == by_place.keys() - {"tests/benchmarks"}
    assert all((REPO / place).exists() for place in (*ignored, *FAST_FOLDERS))
    assert {place: markers for place, markers in by_place.items() if len(markers) > 1} == {
        "tests/device_lane": {"scene and not slow and not gpu", "not scene and not slow and not gpu"}
    }
    assert FULL[: len(CHECKS)] == CHECKS


def test_what_asks_servers_of_the_lane_is_a_scene() -> None:
    """By its fixture, so that no file is named; the other tests of the lane start none."""
    chosen = {}
    for marker in ("scene", "not scene"):
        asked = [*PYTEST, "--collect-only", "-q", "-m", marker, "tests/device_lane/test_round_costs.py"]
        listed = subprocess.run(
            [*asked, "tests/device_lane/test_laws.py"], cwd=REPO, capture_output=True, text=True, check=True
        )
        chosen[marker] = {line.split("::")[0] for line in listed.stdout.splitlines() if "::" in line}
    assert chosen == {
        "scene": {"tests/device_lane/test_round_costs.py"},
        "not scene": {"tests/device_lane/test_laws.py"},
    }
