"""Which foreign names our source relies on, read from it: imports, subclasses, overrides, attributes, keywords.

Types of variables come from annotations, from constructors and from two small tables, by the names that variables and
attributes have throughout the project. What has no type here is not looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ddtree_sglang.contract.check import Found, Reader, Row
from ddtree_sglang.contract.source import installed
from tests.architecture import ROOT, module_name
from tests.contract.engine_types import BASES, IN_MODULE, NOT_LISTED, RETURNED, SERVER_ARGS, VARIABLES, Class, Type

FOREIGN = ("sglang", "ray", "transformers", "torch")


class Use(NamedTuple):
    """One thing that a line relies on: `member` is an attribute of a class, or a parameter given by keyword."""

    module: str
    name: str
    member: str
    place: str


PRIVATE_TORCH = ("torch.ops.", "torch.distributed.rendezvous")


def needs_row(dotted: str) -> bool:
    """Torch's public API needs no row; a name with a leading underscore, a compiled operator and its rendezvous do."""
    if not dotted.startswith("torch"):
        return True
    return dotted.startswith(PRIVATE_TORCH) or any(part.startswith("_") for part in dotted.split("."))


@cache
def reader() -> Reader:
    """The installed packages and our own, each file parsed once."""
    return Reader(installed())


@dataclass(frozen=True)
class Imports:
    """Local names of foreign modules and symbols of one file."""

    modules: dict[str, str]
    symbols: dict[str, Class]

    @classmethod
    def of(cls, tree: ast.Module) -> Imports:
        """Every import of a file, wherever it stands."""
        modules: dict[str, str] = {}
        symbols: dict[str, Class] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    modules[alias.asname or alias.name.split(".")[0]] = alias.name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name, symbol = alias.asname or alias.name, (node.module or "", alias.name)
                    # A name with two meanings in one file is imported, but what is done with it is not known.
                    symbols[name] = symbol if symbols.get(name, symbol) == symbol else ("", "")
            elif isinstance(node, ast.Assign | ast.AnnAssign) and (name := _imported_by_call(node.value)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                modules[ast.unparse(target)] = name
        foreign = {name: module for name, module in modules.items() if module.split(".")[0] in FOREIGN}
        return cls(foreign, {name: symbol for name, symbol in symbols.items() if symbol[0].split(".")[0] in FOREIGN})


def _imported_by_call(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("import_module"):
        argument = value.args[0]
        return argument.value if isinstance(argument, ast.Constant) else None
    return None


def uses_of(path: Path) -> list[Use]:
    """Everything foreign that one file relies on."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return list(_Walk(module_name(path), path, Imports.of(tree)).module(tree))


class _Walk:
    def __init__(self, module: str, path: Path, imports: Imports) -> None:
        self.name = module
        self.path = path.relative_to(ROOT)
        self.imports = imports
        self.variables = VARIABLES | IN_MODULE.get(module, {})
        self.seen: set[int] = set()

    def place(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 0)}"

    def module(self, tree: ast.Module) -> Iterator[Use]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                for alias in node.names:
                    if needs_row(f"{node.module}.{alias.name}"):
                        yield Use(node.module or "", alias.name, "", self.place(node))
        yield from self.block(tree.body, {})

    # -- statements

    def block(self, body: list[ast.stmt], known: dict[str, Type]) -> Iterator[Use]:
        for node in body:
            yield from self.statement(node, known)

    def statement(self, node: ast.AST, known: dict[str, Type]) -> Iterator[Use]:
        if isinstance(node, ast.ClassDef):
            yield from self.klass(node, known)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from self.function(node, known)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            yield from self.assignment(node, node.value, known)
        else:
            if isinstance(node, ast.Attribute):
                yield from self.attribute(node, known)
            if isinstance(node, ast.Call):
                yield from self.call(node, known)
            for child in ast.iter_child_nodes(node):
                yield from self.statement(child, known)

    def function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, known: dict[str, Type]
    ) -> Iterator[Use]:
        inner = known | self.parameters(node.args)
        for decorator in getattr(node, "decorator_list", []):
            yield from self.statement(decorator, known)
        for part in node.body if isinstance(node.body, list) else [node.body]:
            yield from self.statement(part, inner)

    def assignment(self, node: ast.Assign | ast.AnnAssign, value: ast.expr, known: dict[str, Type]) -> Iterator[Use]:
        yield from self.statement(value, known)
        found = self.type_of(value, known)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and found:
                known[target.id] = found
            yield from self.statement(target, known)

    def parameters(self, arguments: ast.arguments) -> dict[str, Type]:
        found: dict[str, Type] = {}
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            named = self.annotated(argument.annotation)
            found[argument.arg] = named or self.variables.get(argument.arg, ())
        return {name: kind for name, kind in found.items() if kind}

    def annotated(self, node: ast.expr | None) -> Type:
        for part in ast.walk(node) if node is not None else ():
            if isinstance(part, ast.Name) and part.id in self.imports.symbols:
                return _type(self.imports.symbols[part.id])
        return ()

    # -- classes

    def klass(self, node: ast.ClassDef, known: dict[str, Type]) -> Iterator[Use]:
        foreign, ours = self.bases(node)
        inner = dict(known)
        if foreign:
            own = reader().own_names(Found(self.name, node))
            for name, definition in own.items():
                if any(reader().member(_class(*base), name) for base in foreign):
                    yield from (Use(*kind, name, self.place(definition)) for kind in self.members(foreign, name))
            defined = {name for level in ours for name in reader().own_names(level)}
            inner["cls"] = inner["super()"] = foreign
            inner["self"] = (*foreign, ("", " ".join(sorted({*own, *defined}))))
        for part in node.body:
            yield from self.statement(part, inner)
        for decorator in node.decorator_list:
            yield from self.statement(decorator, known)

    def bases(self, node: ast.ClassDef) -> tuple[Type, list[Found]]:
        """The foreign classes that a class of ours inherits from, and its ancestors among our own."""
        foreign = list(BASES.get(node.name, ()))
        ours: list[Found] = []
        for base in node.bases:
            dotted = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            if dotted in self.imports.symbols:
                foreign += _type(self.imports.symbols[dotted])
            elif "." not in dotted and (found := reader().find(self.name, dotted)) is not None:
                for level in reader().lineage(found):
                    if level.module.split(".")[0] not in FOREIGN:
                        ours.append(level)
                    elif isinstance(level.node, ast.ClassDef):
                        foreign.append((level.module, level.node.name))
        return tuple(foreign), ours

    # -- expressions

    def attribute(self, node: ast.Attribute, known: dict[str, Type]) -> Iterator[Use]:
        dotted = self.module_path(node)
        if dotted is not None:
            module, name = dotted
            if name and needs_row(f"{module}.{name}") and id(node) not in self.seen:
                # Of a chain only the whole counts.
                self.seen.update(id(part) for part in ast.walk(node))
                yield Use(module, name, "", self.place(node))
            return
        for kind in self.members(self.type_of(node.value, known), node.attr):
            yield Use(*kind, node.attr, self.place(node))

    def call(self, node: ast.Call, known: dict[str, Type]) -> Iterator[Use]:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(node.args[1], ast.Constant):
            for kind in self.members(self.type_of(node.args[0], known), node.args[1].value):
                yield Use(*kind, node.args[1].value, self.place(node))
        keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
        for target in self.called(node.func, known):
            for keyword in () if _takes_anything(target) else keywords:
                wanted = self.members(_type(target), keyword) or (target,)
                yield from (Use(*kind, keyword, self.place(node)) for kind in wanted)

    def called(self, func: ast.expr, known: dict[str, Type]) -> Iterator[Class]:
        """The foreign function, class or method that a call calls."""
        if isinstance(func, ast.Name) and func.id in self.imports.symbols:
            if needs_row(".".join(self.imports.symbols[func.id])):
                yield self.imports.symbols[func.id]
        elif isinstance(func, ast.Attribute):
            path = self.module_path(func)
            if path is not None and path[1] and needs_row(".".join(path)):
                yield path
            elif path is None:
                for module, name in self.members(self.type_of(func.value, known), func.attr):
                    if not name.startswith("*"):
                        yield module, f"{name}.{func.attr}"

    @staticmethod
    def members(kind: Type, attribute: str) -> Type:
        """The classes of a type of which one must list the attribute; none if it is our own."""
        if attribute in NOT_LISTED or any(module == "" and attribute in names.split() for module, names in kind):
            return ()
        classes = tuple(one for one in kind if one[0])
        if len(classes) > 1:
            having = tuple(one for one in classes if reader().member(_class(*one), attribute) is not None)
            return having[:1] or classes[:1]
        return classes

    def module_path(self, node: ast.expr) -> Class | None:
        """Module and name of a dotted path that starts at an imported module; the module itself has an empty name."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.imports.modules:
            module = self.imports.modules[node.id]
        elif node.id in self.imports.symbols:
            found = reader().find(*self.imports.symbols[node.id])
            if found is None or not isinstance(found.node, ast.Module):
                return None
            module = found.module
        else:
            return None
        if module.split(".")[0] == "torch":
            return "torch", ".".join([*module.split(".")[1:], *names])
        while names:
            inner = reader().find(module, names[0])
            if inner is None or not isinstance(inner.node, ast.Module):
                break
            module = f"{module}.{names.pop(0)}"
        return module, names[0] if names else ""

    def type_of(self, node: ast.expr, known: dict[str, Type]) -> Type:
        if isinstance(node, ast.Name):
            named = known.get(node.id) or self.variables.get(node.id)
            return named or _type(self.imports.symbols.get(node.id, ("", "")))
        if isinstance(node, ast.Attribute):
            return self.variables.get(node.attr, ())
        if isinstance(node, ast.Call):
            if ast.unparse(node) == "super()":
                return known.get("super()", ())
            if isinstance(node.func, ast.Name) and node.func.id in self.imports.symbols:
                symbol = self.imports.symbols[node.func.id]
                return RETURNED.get(".".join(symbol)) or _type(symbol)
        return ()


def _takes_anything(target: Class) -> bool:
    """Whether a function has a `**` parameter, so that its source does not say what may be given by keyword."""
    found = reader().find(*target)
    return found is not None and isinstance(found.node, ast.FunctionDef) and found.node.args.kwarg is not None


def _type(symbol: Class) -> Type:
    """The type that a class stands for; none for what is no class, and for torch's, whose public API needs no rows."""
    if symbol == ("sglang.srt.server_args", "ServerArgs"):
        return SERVER_ARGS
    found = reader().find(*symbol) if symbol[0] and not symbol[0].startswith("torch") else None
    if found is None or not isinstance(found.node, ast.ClassDef):
        return ()
    # A Ray actor's class is no class.
    is_actor = any("remote" in ast.unparse(mark) for mark in found.node.decorator_list)
    return () if is_actor else (symbol,)


def _class(module: str, name: str) -> Found:
    found = reader().find(module, name)
    assert found is not None, f"{module} has no {name}: mend tests/contract/engine_types.py"
    return found


class Listed:
    """What a table's rows cover; a class may be listed under any module that it can be imported from."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._names: set[Class] = set()
        self._members: set[tuple[str, str, str]] = set()
        for row in rows:
            first, _, rest = row.name.partition(".")
            self._names |= {(row.module, first), (row.module, row.name)}
            if row.module.startswith("torch."):
                self._names.add(("torch", f"{row.module}.{row.name}".removeprefix("torch.")))
            self._members |= {(*canonical(row.module, row.name), use) for use in row.names}
            if rest:
                self._members.add((*canonical(row.module, first), rest))

    def covers(self, use: Use) -> bool:
        """Whether a row stands for this use."""
        if not use.member and use.module == "transformers":
            # It makes the names of its top level on demand, out of the modules that define them.
            return any(module.startswith("transformers") and name == use.name for module, name in self._names)
        if not use.member:
            return (use.module, use.name) in self._names
        module, name = canonical(use.module, use.name)
        return not self._members.isdisjoint({(module, name, use.member), (module, f"{name}.__init__", use.member)})


@cache
def canonical(module: str, dotted: str) -> Class:
    """Where a class or function is defined, whatever module it is imported from; a method keeps its class."""
    first, _, rest = dotted.partition(".")
    found = reader().find(module, first)
    if found is None or not isinstance(found.node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return module, dotted
    return found.module, f"{found.node.name}.{rest}" if rest else found.node.name
