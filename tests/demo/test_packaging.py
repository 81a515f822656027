"""What an install brings: no weights in a wheel, a demo that says what it lacks, extras that name imports."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ddtree_sglang.demo.drafter import DRAFTER_FOLDER, DRAFTER_VARIABLE, shipped_drafter

REPO = Path(__file__).resolve().parents[2]
WEIGHTS = "ddtree_sglang/demo/drafter/model.safetensors"
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of a wheel, built from a checkout in which an earlier build listed the weights."""
    checkout, output = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("output")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, checkout)
    for name in ("ddtree_sglang", "workers"):
        shutil.copytree(REPO / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert (checkout / WEIGHTS).exists()
    (checkout / "ddtree_sglang.egg-info").mkdir()
    (checkout / "ddtree_sglang.egg-info/SOURCES.txt").write_text(WEIGHTS + "\n")
    subprocess.run([sys.executable, "-c", BUILD, str(output)], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    wheel = next(output.glob("*.whl"))
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(output / "site")
    return output / "site"


def _run(site: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The installed package in a process of its own, away from the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DDTREE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site,
        env=environment | {"PYTHONPATH": str(site)} | more,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_has_the_code_and_the_model_card_and_no_weights(installed: Path) -> None:
    assert list(installed.rglob("*.safetensors")) == []
    for name in ("demo/drafter/README.md", "demo/drafter/config.json", "training/__main__.py", "viewer/assets/page.js"):
        assert (installed / "ddtree_sglang" / name).is_file()
    assert {path.name for path in installed.iterdir()} == {"ddtree_sglang", "workers", "ddtree_sglang-0.1.0.dist-info"}


@pytest.mark.sglang
def test_doctor_of_a_plain_install_is_content_without_the_demo(installed: Path) -> None:
    code = "import sys; from ddtree_sglang.cli import main; sys.exit(main(['doctor']))"
    done = _run(installed, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no drafter (only the demo needs one)" in done.stdout
    assert DRAFTER_VARIABLE in done.stdout


def test_a_plain_install_takes_the_drafter_from_the_folder_that_the_variable_names(installed: Path) -> None:
    code = "from ddtree_sglang.demo.drafter import shipped_drafter; print(shipped_drafter())"
    done = _run(installed, "-c", code)
    assert done.returncode == 1
    assert "DemoNotInstalledError: the demo needs the weights of its drafter, which a wheel leaves out" in done.stderr
    named = _run(installed, "-c", code, DDTREE_DEMO_DRAFTER=str(DRAFTER_FOLDER))
    assert named.stdout.strip() == str(DRAFTER_FOLDER), named.stderr


def test_a_folder_that_is_named_and_empty_is_damaged_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DRAFTER_VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"the shipped drafter in {tmp_path} must match its manifest"):
        shipped_drafter()


def _required(names: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", name)[0].lower() for name in names}


@pytest.mark.sglang
def test_the_extra_names_what_the_recipe_imports_and_the_engine_does_not_require() -> None:
    imported: set[str] = set()
    for path in (REPO / "ddtree_sglang/training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    beyond = imported - set(sys.stdlib_module_names) - {"ddtree_sglang"}
    beyond -= _required(importlib.metadata.requires("sglang") or [])
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert _required(project["optional-dependencies"]["train"]) == beyond


def test_the_pins_of_the_extras_are_those_of_the_environment() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (REPO / "deploy/requirements.txt").read_text(encoding="utf-8").splitlines()
    for extra in ("demo", "train"):
        assert set(project["optional-dependencies"][extra]) <= set(pinned)
