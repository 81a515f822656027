"""`python -m benchmarks` lists what there is, and every name in the list can be run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS, main

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_list_names_every_module_that_has_a_main() -> None:
    with_main = set()
    for path in FOLDER.glob("*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        with_main |= {path.stem} if "main" in names and path.stem != "__main__" else set()
    assert set(COMMANDS) == with_main


def test_module_is_run_by_its_name_alone() -> None:
    """A second way to start a benchmark would have the script's own folder on the module path. One is a server."""
    starters = [path.name for path in FOLDER.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()]
    assert sorted(starters) == ["__main__.py", "penalty_order.py"]


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--help"], 0), (["nonsense"], 2)])
def test_without_a_known_name_the_list_is_shown(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    assert main(arguments) == status
    assert (
        "  lossless            DDTREE's greedy tokens against plain decoding's (an hour)\n" in capsys.readouterr().out
    )
