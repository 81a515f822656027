"""Bytecode stays out of the sources where the machine asks for that, and is kept all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import REPO

IMPORTS = """
import sys
sys.prefix = sys.argv[1]
from tests.bytecode import keep_bytecode
keep_bytecode()
sys.path.insert(0, sys.argv[1])
import imported
import subprocess
subprocess.run([sys.executable, "-c", "import imported_by_child"], cwd=sys.argv[1], check=True)
"""


@pytest.mark.parametrize(("asked", "is_apart"), [("1", True), ("", False)])
def test_bytecode_is_kept_apart_from_the_sources_where_the_machine_asks_for_that(
    asked: str, is_apart: bool, tmp_path: Path
) -> None:
    for name in ("imported", "imported_by_child"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": asked}
    environment.pop("PYTHONPYCACHEPREFIX", None)
    subprocess.run([sys.executable, "-c", IMPORTS, str(tmp_path)], env=environment, check=True)
    apart = {path.name.split(".")[0] for path in tmp_path.glob("bytecode/**/imported*.pyc")}
    beside = {path.name.split(".")[0] for path in tmp_path.glob("__pycache__/imported*.pyc")}
    assert (apart if is_apart else beside) == {"imported", "imported_by_child"}
    assert not (beside if is_apart else apart)
