"""What the checks of the deployment files share: where they are, how to read them, how to call the tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.fake_checkout import REPO

DEPLOY = REPO / "deploy"
DOCKER = DEPLOY / "docker"
K8S = DEPLOY / "k8s"
MONITORING = DEPLOY / "monitoring"
RAY = DEPLOY / "ray"
YAML_FILES = sorted(path for suffix in ("yml", "yaml") for path in DEPLOY.rglob(f"*.{suffix}"))


def find_tool(name: str) -> str:
    """Path of a checker that tests/requirements.txt installs; without it the test skips, but not in CI."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        reason = f"{name} is not installed: bash deploy/setup.sh tests/requirements.txt"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path


def run_tool(command: Sequence[str], **environment: str) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    return result.returncode, result.stdout + result.stderr


def pinned_version(package: str) -> str:
    """The version that the requirement files give a package."""
    from deploy import environment

    lines = environment.requirement_lines(REPO / "workers/requirements.txt")
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every mapping entry inside a parsed document, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}", inner
            yield from walk(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")


def changed(path: Path, old: str, new: str) -> str:
    """Text of a file with one thing in it changed, for a check that has to notice."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} has no {old!r} any more: the negative case proves nothing"
    return text.replace(old, new)
