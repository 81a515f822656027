"""Every change to foreign code is declared, each declaration is true, and the installer makes what it says."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddtree_sglang.contract.cpu_patches import CPU_PLATFORM_PATCHES
from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
from ddtree_sglang.contract.engine import ENGINE
from ddtree_sglang.contract.entry import ENTRY
from ddtree_sglang.contract.patch import Patch, assign, install, late
from ddtree_sglang.contract.patches import ENGINE_PATCHES
from ddtree_sglang.contract.worker_patches import WORKER_PATCHES
from ddtree_sglang.contract.workers import WORKERS
from tests.architecture import ROOT, module_name, source_files

PACKAGES = {
    "ddtree_sglang/engine": (ENGINE_PATCHES, (*ENGINE, *ENTRY)),
    "ddtree_sglang/cpu_platform": (CPU_PLATFORM_PATCHES, CPU_PLATFORM),
    "workers": (WORKER_PATCHES, WORKERS),
}
PATCHES = (*ENGINE_PATCHES, *CPU_PLATFORM_PATCHES, *WORKER_PATCHES)
WRITERS = ("setattr", "delattr", "object.__setattr__", "HookRegistry.register")

OURS = {
    "ddtree_sglang.core": ("",),
    "ddtree_sglang.training": ("",),
    "ddtree_sglang.simulator": ("",),
    # A model that is converted and saved, on no path to a server.
    "ddtree_sglang.demo.smollm2_source": ("model", "model.config"),
    "workers.answers.resume": ("self._reports[-1]",),
    "workers.answers.retry": ("self.counters",),
    "workers.jobs.job": ("report",),
    "workers.replicas.rank_actor": ("actors",),
    # In the place of SGLang's `_propagate_patch`, a patch of its own: it sets what that would set.
    "ddtree_sglang.engine.hook_scan": ("module",),
}
"""Modules that set attributes of our own objects, and how those are called there; "" is all of them."""


def writes(tree: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """Attributes set on anything but `self`, and calls that set or hook: function, object, attribute ("" of a call)."""
    for node in ast.iter_child_nodes(tree):
        here = inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            here = (*inside, node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            target = ast.unparse(node.value)
            if target not in ("self", "cls"):
                yield ".".join(here), target, node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITERS:
            yield ".".join(here), ast.unparse(node.args[0]), ""
        yield from writes(node, here)


def undeclared(path: Path, patches: tuple[Patch, ...]) -> list[str]:
    module = module_name(path)
    declared = {
        (patch.ours.rpartition(":")[2], field)
        for patch in patches
        if patch.ours.startswith(f"{module}:")
        for field in patch.fields.split()
    }
    return [
        f"{path.name}: {place} sets {target}.{attribute}"
        for place, target, attribute in writes(ast.parse(path.read_text(encoding="utf-8")))
        if not _is_ours(module, target)
        and not any((name, attribute) in declared for name in (place, place.rpartition(".")[0]))
    ]


def _is_ours(module: str, target: str) -> bool:
    return any(module.startswith(prefix) and {"", target} & set(names) for prefix, names in OURS.items())


@pytest.mark.parametrize("path", source_files("ddtree_sglang", "workers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_attribute_that_is_set_on_a_foreign_object_is_declared(path: Path) -> None:
    if path.name == "patch.py":
        pytest.skip("the installer")
    assert undeclared(path, PATCHES) == [], "declare it in ddtree_sglang/contract/patches.py"


def test_an_undeclared_change_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "ours.py"
    source.write_text(
        "import torch\nclass A:\n    def f(self, runner, batch):\n"
        "        self.own = 1\n        runner.one = self.other.two = 3\n"
        "        del batch.three\n        setattr(batch, 'four', 1)\n        torch.Tensor.five, batch.six = 5, 6\n"
        "        batch.seven += 1\n        HookRegistry.register('target', f)\n"
    )
    monkeypatch.setattr("tests.contract.test_patches.module_name", lambda path: "ours")
    declared = Patch("x.Y", "object", "ours:A.f", "", "one seven")
    assert [line.split(" sets ")[1] for line in undeclared(source, (declared,))] == [
        "self.other.two",
        "batch.three",
        "batch.",
        "torch.Tensor.five",
        "batch.six",
        "'target'.",
    ]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.ours}-{patch.target.rpartition('.')[2]}")
def test_a_declaration_names_a_place_of_ours_that_does_what_it_says(patch: Patch) -> None:
    module, _, name = patch.ours.partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    node: ast.AST = tree
    for part in name.split("."):
        node = next(child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part)
    assert bool(patch.fields) == (patch.kind == "object")
    written = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    assert set(patch.fields.split()) <= written
    assert patch.why


@pytest.mark.sglang
@pytest.mark.parametrize("folder", PACKAGES)
def test_every_function_that_is_changed_has_a_row(folder: str) -> None:
    patches, rows = PACKAGES[folder]
    listed = {f"{row.module}.{row.name}" for row in rows}
    listed |= {f"{row.module}.{row.name}.{use}" for row in rows for use in row.names}
    for patch in patches:
        assert patch.kind == "object" or patch.target in listed, f"{patch.target} has no row"


def test_hooks_are_registered_in_order_and_find_ours_when_called() -> None:
    registered: list[tuple[str, Callable[..., object], str]] = []
    registry = SimpleNamespace(register=lambda *hook: registered.append(hook))
    patches = (
        Patch("engine.b", "around", "not_yet_there:function", "why"),
        Patch("engine.a", "after", "operator:add", "why"),
        Patch("engine.Class", "object", "ours:f", "why", "field"),
    )
    install(patches, registry, lambda kind: f"HookType.{kind}")
    assert [(target, kind) for target, _, kind in registered] == [
        ("engine.b", "HookType.around"),
        ("engine.a", "HookType.after"),
    ]
    assert registered[1][1](1, 2) == 3
    assert (registered[0][1].__module__, registered[0][1].__qualname__) == ("not_yet_there", "function")
    with pytest.raises(ModuleNotFoundError):
        registered[0][1]()


def test_an_assignment_replaces_what_is_there_and_never_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import string

    patch = Patch("string.capwords", "assign", "tests.contract.test_patches:wrapped", "why")
    stock = string.capwords
    monkeypatch.setattr(string, "capwords", stock)
    assign(patch)
    ours = string.capwords
    assert ours("two words") == ("ours", "Two Words")  # type: ignore[comparison-overlap]
    assign(patch)
    assert string.capwords is ours
    monkeypatch.setattr(string, "capwords", stock)
    assign(patch)
    assert string.capwords("two words") == ("ours", "Two Words")  # type: ignore[comparison-overlap]


def test_two_assignments_of_one_target_stand_around_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    import string

    first, second = (
        Patch("string.capwords", "assign", f"tests.contract.test_patches:{name}", "why")
        for name in ("wrapped", "wrapped_twice")
    )
    monkeypatch.setattr(string, "capwords", string.capwords)
    for patch in (first, second, first, second):
        assign(patch)
    assert string.capwords("two words") == ("twice", ("ours", "Two Words"))  # type: ignore[comparison-overlap]


def wrapped_twice(stock: Callable[[str], object]) -> Callable[[str], tuple[str, object]]:
    """What another assignment to the same target puts in place."""
    return lambda text: ("twice", stock(text))


def wrapped(stock: Callable[[str], str]) -> Callable[[str], tuple[str, str]]:
    """What the assignment above puts in place."""
    return lambda text: ("ours", stock(text))


def test_ours_is_looked_up_once() -> None:
    assert late("operator:add")(2, 3) == 5


@pytest.mark.sglang
def test_the_plugins_register_exactly_what_is_declared() -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    ours = {
        (target, kind.value, f"{hook.__module__}:{hook.__qualname__}")
        for target, hooks in HookRegistry._hooks.items()
        for kind, hook, _ in hooks
        if hook.__module__.split(".")[0] in ("ddtree_sglang", "workers")
    }
    declared = {(patch.target, patch.kind, patch.ours) for patch in PATCHES}
    assert len(ours) >= 9, "the plugins registered too little"
    assert ours <= declared
