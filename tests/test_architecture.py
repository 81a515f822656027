"""Imports go in one direction only. Parsed from the source, so that unused and lazy imports count too.

deploy -> workers -> ddtree_sglang.engine -> ddtree_sglang.core
                                  \\-> ddtree_sglang.kernels -> core types only
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ddtree_sglang"
OWN_TOP_LEVEL = {PACKAGE, "workers", "deploy", "benchmarks", "tests"}

# Which parts of the project each part may import, itself apart.
MAY_IMPORT: dict[str, set[str]] = {
    "ddtree_sglang.core": set(),
    "ddtree_sglang.kernels": {"ddtree_sglang.core"},
    "ddtree_sglang.exceptions": set(),
    "ddtree_sglang.config": {"ddtree_sglang.exceptions"},
    "ddtree_sglang.cpu_platform": {"ddtree_sglang.core", "ddtree_sglang.kernels", "ddtree_sglang.exceptions"},
    "ddtree_sglang.engine": {
        "ddtree_sglang",
        "ddtree_sglang.core",
        "ddtree_sglang.kernels",
        "ddtree_sglang.config",
        "ddtree_sglang.exceptions",
        "ddtree_sglang.cpu_platform",
    },
    "ddtree_sglang.demo": {"ddtree_sglang.core", "ddtree_sglang.config", "ddtree_sglang.exceptions"},
    "workers": {
        "ddtree_sglang",
        "ddtree_sglang.engine",
        "ddtree_sglang.config",
        "ddtree_sglang.exceptions",
        "ddtree_sglang.cpu_platform",
        "ddtree_sglang.demo",
    },
}
# Third-party packages that only these parts may import.
ONLY_IN: dict[str, set[str]] = {
    "sglang": {"ddtree_sglang.engine", "ddtree_sglang.cpu_platform", "workers"},
    "ray": {"workers"},
    "triton": {"ddtree_sglang.kernels"},
    "flashinfer": {"ddtree_sglang.kernels", "ddtree_sglang.engine"},
}


def part_of(module: str) -> str:
    """The part of the project that a module belongs to: two levels inside the package, one outside."""
    names = module.split(".")
    if names[0] != PACKAGE:
        return names[0]
    return ".".join(names[:2])


def module_name(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported_modules(path: Path) -> set[str]:
    """Full names of everything a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            # `from ddtree_sglang import core` names a part in its second half.
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == PACKAGE else {module}
    return found


def source_files() -> list[Path]:
    return [path for top in (PACKAGE, "workers") for path in sorted((ROOT / top).rglob("*.py"))]


def violations(module: str, imports: set[str]) -> list[str]:
    """What a module of that name may not import, out of `imports`."""
    part = part_of(module)
    wrong = []
    for imported in sorted(imports):
        top, target = imported.split(".")[0], part_of(imported)
        if top in OWN_TOP_LEVEL and part in MAY_IMPORT and target != part and target not in MAY_IMPORT[part]:
            wrong.append(f"{module} may not import {imported}")
        if top in ONLY_IN and part not in ONLY_IN[top]:
            wrong.append(f"{module} may not import {imported}: only {sorted(ONLY_IN[top])} may")
        if part == "ddtree_sglang.core" and top not in {PACKAGE, "torch"} | sys.stdlib_module_names:
            wrong.append(f"{module} may import torch and the standard library only, not {imported}")
    return wrong


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert violations(module_name(path), imported_modules(path)) == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("ddtree_sglang.core.tree_builder", "sglang.srt"),
        ("ddtree_sglang.core.tree_builder", "numpy"),
        ("ddtree_sglang.core.tree_builder", "ddtree_sglang.engine.worker"),
        ("ddtree_sglang.kernels.tree_builder_triton", "ddtree_sglang.engine"),
        ("ddtree_sglang.config", "ddtree_sglang.core"),
        ("ddtree_sglang.cpu_platform.attention", "ddtree_sglang.engine.worker"),
        ("ddtree_sglang.engine.worker", "workers.protocol"),
        ("ddtree_sglang.engine.worker", "ray"),
        ("ddtree_sglang.cli", "sglang"),
        ("workers.actor", "ddtree_sglang.core.draft_tree"),
    ],
)
def test_the_rules_themselves_refuse_an_import_against_the_direction(module: str, imported: str) -> None:
    assert violations(module, {imported})


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text(
        "import os\nfrom ddtree_sglang import engine\ndef f():\n    import triton.language as tl\n"
        "    from sglang.srt import x\n"
    )
    assert imported_modules(source) == {"os", "ddtree_sglang.engine", "triton.language", "sglang.srt"}


def test_there_are_files_to_check() -> None:
    assert {"ddtree_sglang.core.tree_builder", "ddtree_sglang.core.acceptance"} <= {
        module_name(path) for path in source_files()
    }
