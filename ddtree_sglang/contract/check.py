"""Whether a package has what a table of rows says, answered from its source: nothing is imported, nothing is run.

A name counts as present where Python would find it: defined, imported from elsewhere, inherited from a base class, or
assigned to `self` in a method. Names that only exist in compiled code have rows of their own kind.
"""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ddtree_sglang.contract.source import Source, installed

_FOR_TYPING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Row(NamedTuple):
    """One foreign name that the project relies on.

    Attributes:
        module: dotted module, from which the name is imported.
        name: function, class, constant, `Class.method` or `Class.field`.
        uses: names separated by spaces: parameters of a function, or members of a class, instance attributes included.
        why: what of ours needs it.
        exact: the function takes exactly `uses`, in this order, `self` and `cls` left out.
        compiled: the name has no source. It is looked up in the package if that is imported already, else not at all.
        when: of a compiled name, the package's own function that says whether this build has it; "" for every build.
    """

    module: str
    name: str
    uses: str = ""
    why: str = ""
    exact: bool = False
    compiled: bool = False
    when: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """`uses`, one by one."""
        return tuple(self.uses.split())


class Found(NamedTuple):
    """A definition, and the module that it stands in."""

    module: str
    node: ast.AST


def mismatches(rows: Iterable[Row], source: Source | None = None) -> list[str]:
    """One sentence for each row that does not hold; empty when all do.

    Args:
        source: where packages are read; None reads what is installed.
    """
    reader = Reader(source or installed())
    with _without_collector():
        return [problem for row in rows if (problem := reader.mismatch(row)) is not None]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Suspend garbage collection: going through the growing syntax trees takes twice the time of parsing them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Reader:
    """Looks names up in one source tree; each file is parsed once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._bindings: dict[str, dict[str, ast.AST]] = {}
        self._members: dict[tuple[str, str], dict[str, ast.AST]] = {}

    def mismatch(self, row: Row) -> str | None:
        """What is wrong with one row, or None."""
        where = f"{row.module}.{row.name}"
        if row.compiled:
            return None if _is_compiled_in(row) else f"{where} does not exist; {row.why} needs it"
        if self._source.tree(row.module) is None:
            return f"no module {row.module}; {row.why} needs {row.name}"
        found = self.find(row.module, row.name)
        if found is None:
            return f"{row.module} has no {row.name}; {row.why} needs it"
        if not row.names and not row.exact:
            return None
        if isinstance(found.node, Function):
            return _parameter_mismatch(row, found.node)
        missing = [name for name in row.names if self.member(found, name) is None]
        return f"{where} has no {missing}; {row.why} needs it" if missing else None

    def find(self, module: str, dotted: str) -> Found | None:
        """The definition of a dotted name, or None."""
        first, *rest = dotted.split(".")
        found = self._binding(module, first, frozenset())
        for part in rest:
            found = None if found is None else self.member(found, part)
        return found

    def member(self, found: Found, name: str) -> Found | None:
        """A member of a class (its own, of an instance, or inherited) or of a module, or None."""
        if isinstance(found.node, ast.Module):
            return self._binding(found.module, name, frozenset())
        for level in self.lineage(found):
            node = self.own_names(level).get(name)
            if node is not None:
                return Found(level.module, node)
        return None

    def lineage(self, found: Found) -> Iterator[Found]:
        """A class, then its base classes as far as they can be read, nearest first."""
        todo, seen = [found], set()
        while todo:
            level = todo.pop(0)
            if not isinstance(level.node, ast.ClassDef) or id(level.node) in seen:
                continue
            seen.add(id(level.node))
            yield level
            bases = (_dotted(base.value if isinstance(base, ast.Subscript) else base) for base in level.node.bases)
            todo += [base for name in bases if name and (base := self.find(level.module, name)) is not None]

    def own_names(self, level: Found) -> dict[str, ast.AST]:
        """What a class itself defines, or assigns to an instance in one of its methods; base classes left out."""
        assert isinstance(level.node, ast.ClassDef)
        key = (level.module, level.node.name)
        if key not in self._members:
            own = _bindings(level.node.body)
            own |= dict.fromkeys(_slots(own.get("__slots__")), level.node)
            for method in level.node.body:
                if isinstance(method, Function) and method.args.args:
                    for name, node in _assigned_to(method.args.args[0].arg, method):
                        own.setdefault(name, node)
            self._members[key] = own
        return self._members[key]

    def _binding(self, module: str, name: str, seen: frozenset[tuple[str, str]]) -> Found | None:
        """What a module calls `name`, followed through imports and plain aliases to its definition."""
        tree = self._source.tree(module)
        if tree is None or (module, name) in seen:
            return None
        seen = seen | {(module, name)}
        if module not in self._bindings:
            self._bindings[module] = _bindings(tree.body, for_typing=_is_lazy(tree))
        node = self._bindings[module].get(name)
        if node is None:
            return self._binding_elsewhere(module, name, tree, seen)
        if isinstance(node, ast.ImportFrom):
            return self._imported(module, node, name, seen) or Found(module, node)
        if isinstance(node, ast.Import):
            return self._module_of(node, name) or Found(module, node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            return self._binding(module, node.value.id, seen) or Found(module, node)
        return Found(module, node)

    def _binding_elsewhere(
        self, module: str, name: str, tree: ast.Module, seen: frozenset[tuple[str, str]]
    ) -> Found | None:
        """A name that a module does not bind itself: a submodule, a star import, or made on demand."""
        submodule = self._source.tree(f"{module}.{name}")
        if submodule is not None:
            return Found(f"{module}.{name}", submodule)
        for star, node in _bound(tree.body, for_typing=False):
            if star == "*" and isinstance(node, ast.ImportFrom):
                found = self._binding(self._source.origin(module, node), name, seen)
                if found is not None:
                    return found
        return Found(module, tree) if _is_made_on_demand(tree, name) else None

    def _imported(self, module: str, node: ast.ImportFrom, name: str, seen: frozenset[tuple[str, str]]) -> Found | None:
        real = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        origin = self._source.origin(module, node)
        found = self._binding(origin, real, seen)
        if found is None and (tree := self._source.tree(f"{origin}.{real}")) is not None:
            return Found(f"{origin}.{real}", tree)
        return found

    def _module_of(self, node: ast.Import, name: str) -> Found | None:
        for alias in node.names:
            full = alias.name if alias.asname == name else alias.name.split(".")[0]
            if (alias.asname or full) == name and (tree := self._source.tree(full)) is not None:
                return Found(full, tree)
        return None


def _parameter_mismatch(row: Row, function: Function) -> str | None:
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    stars = [argument.arg if argument else None for argument in (arguments.vararg, arguments.kwarg)]
    taken = [*positional, stars[0], *(argument.arg for argument in arguments.kwonlyargs), stars[1]]
    taken = [name for name in taken if name not in (None, "self", "cls")]
    if row.exact and taken != list(row.names):
        return f"{row.module}.{row.name} takes {taken}, not {list(row.names)}; {row.why} needs it"
    missing = [name for name in row.names if name not in taken]
    return f"{row.module}.{row.name} has no {missing}; {row.why} needs it" if missing else None


def _bindings(body: Sequence[ast.stmt], for_typing: bool = False) -> dict[str, ast.AST]:
    """Names that statements bind, each with its first definition, or its first import where it is only imported."""
    pairs = sorted(_bound(body, for_typing), key=lambda pair: not isinstance(pair[1], ast.Import | ast.ImportFrom))
    return dict(pairs)


def _bound(body: Sequence[ast.stmt], for_typing: bool) -> Iterator[tuple[str, ast.AST]]:
    """Bindings from the last to the first, those in branches and blocks included."""
    for node in reversed(body):
        is_for_typing = isinstance(node, ast.If) and _dotted(node.test) in _FOR_TYPING
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler) and for_typing >= is_for_typing:
            for block in ("finalbody", "orelse", "handlers", "body"):
                yield from _bound(getattr(node, block, ()), for_typing)
        if isinstance(node, Function | ast.ClassDef):
            # What `typing.overload` marks is there for type checkers; the definition follows.
            if not any((_dotted(mark) or "").endswith("overload") for mark in node.decorator_list):
                yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (((alias.asname or alias.name.split(".")[0]), node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from ((target.id, node) for target in _targets(node) if isinstance(target, ast.Name))


def _assigned_to(instance: str, method: Function) -> Iterator[tuple[str, ast.AST]]:
    """Attributes that a method assigns to its first argument."""
    for node in ast.walk(method):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in _targets(node):
                if isinstance(target, ast.Attribute) and _dotted(target.value) == instance:
                    yield target.attr, node


def _slots(node: ast.AST | None) -> Iterator[str]:
    """Instance attributes that a class names in `__slots__`."""
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[ast.expr]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def _is_lazy(tree: ast.Module) -> bool:
    """Whether a module makes names on demand, through `__getattr__` or as transformers' `_LazyModule`."""
    return any(
        (isinstance(node, Function) and node.name == "__getattr__")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "_LazyModule" for alias in node.names))
        for node in tree.body
    )


def _is_made_on_demand(tree: ast.Module, name: str) -> bool:
    """Whether a lazy module spells this name."""
    return _is_lazy(tree) and any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(tree))


def _is_compiled_in(row: Row) -> bool:
    package = sys.modules.get(row.module)
    if package is None or (row.when and not _attribute(package, row.when)()):
        return True
    try:
        _attribute(package, row.name)
    except (AttributeError, RuntimeError):
        return False
    return True


def _attribute(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)) is not None:
        return f"{left}.{node.attr}"
    return None
