"""The house stands: no arrow runs upward, there are no circles, and each folder keeps what its first lines promise."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.architecture import (
    ORDER,
    PICTURE,
    ROOT,
    TOPS,
    arrows,
    circles,
    entry_of,
    floors,
    forbidden,
    imported_modules,
    is_within,
    module_name,
    picture,
    source_files,
    written_twice,
)

PRODUCT = ("ddtree_sglang", "workers")
# Folders that may import torch (or nothing) beside the standard library and what lies in them.
PURE = {"ddtree_sglang.core": {"numba", "numpy", "torch"}, "workers.answers": set(), "ddtree_sglang.contract": set()}
# Third-party packages that only these parts may import.
ONLY_IN = {
    "sglang": ("ddtree_sglang.engine", "ddtree_sglang.cpu_platform", "workers", "tests", "benchmarks"),
    "ray": ("workers", "deploy.local", "tests", "benchmarks"),
    "triton": ("ddtree_sglang.kernels", "tests", "benchmarks"),
    "flashinfer": ("ddtree_sglang.kernels", "ddtree_sglang.engine", "tests", "benchmarks"),
    "pytest": ("tests",),
}


def violations(module: str, imports: set[str]) -> list[str]:
    """What a module of that name may not import, out of `imports`."""
    wrong = []
    for imported in sorted(imports):
        top = imported.split(".")[0]
        if top in TOPS and ORDER.index(entry_of(imported)) > ORDER.index(entry_of(module)):
            wrong.append(f"{module} imports upward: {imported}")
        if top in ONLY_IN and not any(is_within(module, part) for part in ONLY_IN[top]):
            wrong.append(f"{module} may not import {imported}: only {ONLY_IN[top]} may")
        for folder, allowed in PURE.items():
            pure = {*allowed, *sys.stdlib_module_names}
            ours = is_within(imported, folder) or imported == "ddtree_sglang.exceptions"
            if is_within(module, folder) and top not in pure and not ours:
                wrong.append(f"{module} may import {sorted(allowed)} and the standard library only, not {imported}")
    return wrong


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_nothing_that_stands_above_it(path: Path) -> None:
    assert violations(module_name(path), imported_modules(path)) == []


@pytest.mark.parametrize(
    "folder",
    [path.parent for path in source_files(*PRODUCT, "deploy", "benchmarks") if path.name == "__init__.py"],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_folder_says_what_it_holds_and_keeps_its_promise(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), "say what it holds"
    names = forbidden(folder)
    assert names, f"{folder}/__init__.py: say in one line what it must not import, names in backticks"
    for path in sorted(folder.rglob("*.py")):
        broken = [name for name in imported_modules(path) for rule in names if is_within(name, rule)]
        assert not broken, f"{path} imports {broken}, which {folder.name}/__init__.py rules out"


def test_rooms_form_no_circle() -> None:
    graph = arrows(*PRODUCT, "deploy", "benchmarks")
    assert circles(graph) == []
    assert max(floors(graph).values()) > 3


def test_modules_form_no_circle() -> None:
    graph = {module_name(path): imported_modules(path) for path in source_files()}
    assert circles({name: {below for below in found if below in graph} for name, found in graph.items()}) == []


def test_benchmarks_and_tests_do_not_lean_on_each_other() -> None:
    for path in source_files("benchmarks", "tests"):
        name, imports = module_name(path), imported_modules(path)
        if is_within(name, "benchmarks"):
            assert not [other for other in imports if is_within(other, "tests")], name
        elif not is_within(name, "tests.benchmarks"):
            assert not [other for other in imports if is_within(other, "benchmarks")], name


def test_picture_in_the_documents_is_the_one_that_the_imports_draw() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python -m tests.architecture"


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("ddtree_sglang.core.tree_builder", "sglang.srt"),
        ("ddtree_sglang.core.tree_builder", "scipy"),
        ("ddtree_sglang.core.tree_builder", "ddtree_sglang.engine.worker"),
        ("ddtree_sglang.kernels.tree_builder_triton", "ddtree_sglang.engine"),
        ("ddtree_sglang.config", "ddtree_sglang.core"),
        ("ddtree_sglang.cpu_platform.attention.backend", "ddtree_sglang.engine.worker"),
        ("ddtree_sglang.contract.check", "sglang"),
        ("ddtree_sglang.engine.worker", "workers.answers.protocol"),
        ("ddtree_sglang.engine.worker", "ray"),
        ("ddtree_sglang.training.fit.loop", "sglang"),
        ("ddtree_sglang.cli", "sglang"),
        ("workers.answers.resume", "workers.http.ingress"),
        ("workers.answers.resume", "ray"),
        ("workers.answers.resume", "ddtree_sglang.config"),
        ("workers.replicas.replica", "workers.app"),
        ("deploy.environment", "benchmarks.decode"),
        ("benchmarks.faults", "tests.e2e_ray.nodes"),
    ],
)
def test_the_rules_themselves_refuse_an_import_against_the_direction(module: str, imported: str) -> None:
    assert violations(module, {imported})


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_a_module_writes_a_name_again(path: Path) -> None:
    assert written_twice(path.read_text(encoding="utf-8")) == []


def test_names_that_are_written_again_are_found() -> None:
    assert written_twice("A = 1\nB: int = 2\nif A:\n    C = 1\nB = 3\nD, (A, E) = F = 4, (5, 6)\n") == ["A", "B"]


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text(
        "import os\nfrom ddtree_sglang import engine\ndef f():\n    import triton.language as tl\n"
        "    from sglang.srt import x\n"
    )
    assert imported_modules(source) == {"os", "ddtree_sglang.engine", "triton.language", "sglang.srt"}


def test_a_folders_promise_is_read_from_its_first_lines(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""Holds `a`. Must not import `b`, nor\n`c.d`. Knows `e`."""\n')
    assert forbidden(tmp_path) == ["b", "c.d"]


def test_there_are_files_to_check() -> None:
    assert {"ddtree_sglang.core.tree_builder", "ddtree_sglang.core.acceptance"} <= {
        module_name(path) for path in source_files()
    }
