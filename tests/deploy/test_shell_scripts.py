"""Every shell script of the repository passes shellcheck and stops at the first failing command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.fake_checkout import REPO

OTHERS = ("benchmarks/gpu_proof.sh", "tests/run.sh", ".ci/run")
SCRIPTS = [*sorted((REPO / "deploy").rglob("*.sh")), *map(REPO.joinpath, OTHERS)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_passes_shellcheck(script: Path) -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (tests/requirements.txt has it for x86-64)")
    result = subprocess.run([checker, "-x", str(script)], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_strict(script: Path) -> None:
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
