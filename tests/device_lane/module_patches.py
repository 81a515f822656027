"""Changing names of modules that are not imported yet, and checking that they are the ones that were read.

A backend binds what it needs when it is imported, and importing it early would import half the engine before its
platform is chosen. So a patch waits for the import.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class PinnedNameError(RuntimeError):
    """A name of another distribution is not what the lane was written against."""


@dataclass(frozen=True)
class Patch:
    """What happens around the import of a module: `before` its first line, `after` its last."""

    after: Callable[[ModuleType], None]
    before: Callable[[], None] | None = None


_waiting: dict[str, Patch] = {}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, then puts the patch around its execution."""

    def __init__(self) -> None:
        self.finding: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every module without a patch, and while the others look."""
        if fullname not in _waiting or fullname in self.finding:
            return None
        self.finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.finding.discard(fullname)
        if spec is None or spec.loader is None:
            raise PinnedNameError(f"no module {fullname}, which the lane patches")
        _wrap(spec.loader, _waiting.pop(fullname))
        return spec


def _wrap(loader: importlib.abc.Loader, patch: Patch) -> None:
    execute = loader.exec_module

    def patched(module: ModuleType) -> None:
        if patch.before is not None:
            patch.before()
        execute(module)
        patch.after(module)

    # On the instance: tools that ask for the module's source keep finding the real loader.
    loader.exec_module = patched  # type: ignore[method-assign]


def on_import(module: str, patch: Patch) -> None:
    """Run `patch` when `module` is imported; at once if it is, which a `before` does not allow.

    Raises:
        PinnedNameError: the module is imported already and the patch has a `before`.
    """
    if module in sys.modules:
        if patch.before is not None:
            raise PinnedNameError(f"{module} is imported already: install the lane's references before it")
        patch.after(sys.modules[module])
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting[module] = patch


def replace(module: ModuleType | type, name: str, value: object, parameters: Sequence[str] | None = None) -> None:
    """Set a name of a module or of a class.

    Raises:
        PinnedNameError: the module has no such name, or its parameters are not these.
    """
    if not hasattr(module, name):
        raise PinnedNameError(f"{module.__name__} has no {name}; the lane replaces it")
    if parameters is not None:
        found = list(inspect.signature(getattr(module, name)).parameters)
        if found != list(parameters):
            raise PinnedNameError(
                f"{module.__name__}.{name} takes {found}; the lane replaces ({', '.join(parameters)})"
            )
    setattr(module, name, value)


def require_parameters(source: Path, qualified_name: str, expected: Sequence[str]) -> None:
    """The first parameters of a function are these. The file is read, not imported: it may need a GPU.

    Raises:
        PinnedNameError: the file has no such function, or its first parameters differ.
    """
    found = parameters_in(source, qualified_name)[: len(expected)]
    if found != list(expected):
        raise PinnedNameError(
            f"{qualified_name} in {source} takes {found}; the lane's reference takes {list(expected)}"
        )


def require_signature(source: Path, qualified_name: str, reference: Callable[..., object]) -> None:
    """A reference takes what the original takes, in its order.

    Raises:
        PinnedNameError: the file has no such function, or the parameters differ.
    """
    ours = list(inspect.signature(reference).parameters)
    original = parameters_in(source, qualified_name)
    if original != ours:
        raise PinnedNameError(f"{qualified_name} in {source} takes {original}; the lane's reference takes {ours}")


def parameters_in(source: Path, qualified_name: str) -> list[str]:
    """The names of a function's parameters, `outer.inner` for a method or an inner function.

    Raises:
        PinnedNameError: the file has no such function.
    """
    body: Sequence[ast.stmt] = ast.parse(source.read_text()).body
    *outer, function = qualified_name.split(".")
    for name in outer:
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
        if not found:
            raise PinnedNameError(f"{source} has no {name}")
        body = found[-1].body
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not functions:
        raise PinnedNameError(f"{source} has no {qualified_name}")
    # The last one: overloads for type checkers come first.
    arguments = functions[-1].args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [arguments.vararg.arg] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return names + ([arguments.kwarg.arg] if arguments.kwarg else [])


def package_folder(package: str) -> Path:
    """Where a package lies, without importing it.

    Raises:
        PinnedNameError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PinnedNameError(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])
