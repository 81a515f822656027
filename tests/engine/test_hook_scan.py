"""Hooks reach what SGLang's own scan of all modules reaches, and those on methods take one scan together."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ddtree_sglang.engine import hook_scan
from ddtree_sglang.engine.hook_scan import apply_with_one_scan, collect_methods

pytestmark = pytest.mark.sglang

SOURCE = """
class Base:
    def method(self): return "method"
    def other(self): return "other"
    @staticmethod
    def still(self=None): return "still"
class Heir(Base): pass
class Outer:
    class Inner:
        def method(self): return "inner"
        other = still = method
def function(self=None): return "function"
alias = function
"""
NAMES = ("hooked_source", "hooked_import", "hooked_again")


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = object.__hash__


@pytest.fixture
def modules() -> Iterator[Callable[[], list[ModuleType]]]:
    """Makes three modules, of which two have imported from the first."""

    def make() -> list[ModuleType]:
        made = [ModuleType(name) for name in NAMES]
        exec(SOURCE, vars(made[0]))
        base = vars(made[0])["Base"]
        for module in made[1:]:
            vars(module).update(method=base.method, again=base.method, other=base.other, still=base.still)
            vars(module).update(function=vars(made[0])["function"], odd=Incomparable())
            vars(module).update(Inner=vars(made[0])["Outer"].Inner)
        sys.modules.update(zip(NAMES, made, strict=True))
        return made

    yield make
    for name in NAMES:
        sys.modules.pop(name, None)


def registry() -> Any:
    """SGLang's registry, read anew from its file: no hook is known to it, and nothing of ours changes it."""
    from sglang.srt.plugins import hook_registry

    spec = importlib.util.spec_from_file_location("hook_registry_of_a_test", str(hook_registry.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours() -> Any:
    made = registry()
    made._propagate_patch = collect_methods(made._propagate_patch)
    made.HookRegistry.apply_hooks = apply_with_one_scan(made.HookRegistry.apply_hooks)
    return made


def mark(name: str) -> Callable[..., str]:
    return lambda original, *args, **kwargs: f"{name}({original(*args, **kwargs)})"


def answers(modules: list[ModuleType]) -> dict[str, str]:
    """What every function that a module holds, and every method of its classes, says."""
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            if name == "Outer":
                value = value.Inner
            if isinstance(value, type) and value is not Incomparable:
                instance = value()
                found |= {f"{module.__name__}.{name}.{m}": getattr(instance, m)() for m in ("method", "other", "still")}
            elif callable(value) and not isinstance(value, Incomparable):
                found[f"{module.__name__}.{name}"] = value(None)
    return found


TARGETS = {
    "two methods": ("hooked_source.Base.method", "hooked_source.Base.other"),
    "a method of a class and of its heir": ("hooked_source.Base.method", "hooked_source.Heir.method"),
    "a static method": ("hooked_source.Base.still",),
    "a function": ("hooked_source.function",),
    "a function where it is and where it was imported to": ("hooked_again.function", "hooked_source.function"),
    "all": ("hooked_source.Base.method", "hooked_source.Base.still", "hooked_source.Heir.other", "hooked_source.alias"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_the_same_is_wrapped_as_by_sglang(case: str, modules: Callable[[], list[ModuleType]]) -> None:
    said = []
    for one in (registry(), ours()):
        made = modules()
        for target in TARGETS[case]:
            one.HookRegistry.register(target, mark(target), one.HookType.AROUND)
        one.HookRegistry.apply_hooks()
        one.HookRegistry.apply_hooks()
        said.append(answers(made))
    assert said[0] == said[1]
    assert any("(" in answer for name, answer in said[1].items() if name.startswith("hooked_again"))


class NewInner:
    def method(self) -> str:
        return "new"

    other = still = method


def test_a_class_inside_a_class_is_replaced_before_its_methods_are_wrapped(
    modules: Callable[[], list[ModuleType]],
) -> None:
    said = []
    for one in (registry(), ours()):
        made = modules()
        one.HookRegistry.register("hooked_source.Outer.Inner", NewInner, one.HookType.REPLACE)
        one.HookRegistry.register("hooked_again.Inner.method", mark("wrapped"), one.HookType.AROUND)
        one.HookRegistry.apply_hooks()
        said.append(answers(made))
        NewInner.method = NewInner.other  # type: ignore[method-assign]
    assert said[0] == said[1]
    assert said[1]["hooked_again.Inner.method"] == "wrapped(new)"


def test_a_module_that_takes_no_attribute_does_not_keep_the_others_from_it(
    modules: Callable[[], list[ModuleType]], caplog: pytest.LogCaptureFixture
) -> None:
    class Frozen(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            raise RuntimeError("frozen")

    one, made = ours(), modules()
    sys.modules["hooked_frozen"] = frozen = Frozen("hooked_frozen")
    try:
        vars(frozen)["method"] = vars(made[1])["method"]
        for target in ("hooked_source.Base.method", "hooked_source.Base.other"):
            one.HookRegistry.register(target, mark("hook"), one.HookType.AROUND)
        one.HookRegistry.apply_hooks()
    finally:
        del sys.modules["hooked_frozen"]
    assert "Failed to replace" in caplog.text
    assert answers(made)["hooked_again.other"] == "hook(other)"


def test_hooks_that_an_import_applies_meanwhile_do_not_lose_the_others(
    modules: Callable[[], list[ModuleType]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, made = ours(), modules()
    stock = one.pkgutil.resolve_name

    def resolve(name: str) -> Any:
        if name.endswith("Heir") and "hooked_source.Base.other" not in one.HookRegistry._hooks:
            one.HookRegistry.register("hooked_source.Base.other", mark("other"), one.HookType.AROUND)
            one.HookRegistry.apply_hooks()
        return stock(name)

    monkeypatch.setattr(one.pkgutil, "resolve_name", resolve)
    for target in ("hooked_source.Base.method", "hooked_source.Heir.still"):
        one.HookRegistry.register(target, mark("first"), one.HookType.AROUND)
    one.HookRegistry.apply_hooks()
    found = answers(made)
    assert (found["hooked_again.method"], found["hooked_again.other"]) == ("first(method)", "other(other)")


def test_methods_take_one_scan(modules: Callable[[], list[ModuleType]], monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []
    stock = hook_scan.held_by_modules

    def scan(objects: list[object]) -> set[int]:
        scans.append(len(objects))
        return stock(objects)

    monkeypatch.setattr(hook_scan, "held_by_modules", scan)
    one = ours()
    modules()
    for target in TARGETS["all"][:3]:
        one.HookRegistry.register(target, mark(target), one.HookType.AROUND)
    one.HookRegistry.apply_hooks()
    assert scans == [3]


def test_a_function_that_an_import_binds_meanwhile_is_found(
    modules: Callable[[], list[ModuleType]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a new name at once; to a name that a module has, behind the last hook: it has as many attributes as before."""
    one, made = ours(), modules()
    function = vars(made[0])["function"]
    stock = one.pkgutil.resolve_name

    def resolve(name: str) -> Any:
        if name.endswith("Heir"):
            vars(made[1]).update(late=Base.function, odd=Base.function)
        if name == "hooked_again" and len(order) == 1:
            # Names that were there, of a function that is hooked by another name of its own later.
            vars(made[2])["odd"] = function
        order.append(name)
        return stock(name)

    class Base:
        function = vars(made[0])["alias"]

    order: list[str] = []
    monkeypatch.setattr(one.pkgutil, "resolve_name", resolve)
    for target in ("hooked_again.function", "hooked_source.Heir.method", "hooked_source.Base.method"):
        one.HookRegistry.register(target, mark(target.rpartition(".")[2]), one.HookType.AROUND)
    one.HookRegistry.apply_hooks()
    found = answers(made)
    assert found["hooked_import.late"] == found["hooked_import.odd"] == "function(function)"
    assert found["hooked_source.alias"] == "function(function)"


def test_what_a_module_holds_is_taken_anew_when_it_has_another_number_of_names(
    modules: Callable[[], list[ModuleType]],
) -> None:
    made, names = modules(), hook_scan.Names()
    function = vars(made[0])["function"]
    assert names.holders(function) == made
    del vars(made[2])["function"]
    assert names.holders(function) == made[:2]
    vars(made[2])["odd"] = function
    assert names.holders(function) == made[:2]
    vars(made[2])["more"] = function
    assert names.holders(function) == made


def test_servers_hooks_are_applied_so(plugins: None) -> None:
    from sglang.srt.plugins import hook_registry

    assert hook_registry.HookRegistry.apply_hooks.__module__ == "ddtree_sglang.engine.hook_scan"
    assert hook_registry._propagate_patch.__module__ == "ddtree_sglang.engine.hook_scan"
