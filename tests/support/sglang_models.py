"""SGLang's model classes, read from their source: none is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

METHOD = "set_dflash_layers_to_capture"
"""By which a model is told which layers' states to hand to a drafter."""
DRAFTER_METHOD = "project_target_hidden"
"""By which SGLang's workers for blocks hand those states to a drafter (speculative/dflash_worker_v2.py)."""
_PACKAGE = "sglang.srt.models."

Place = tuple[str, str]
"""Module, below SGLang's models, and class."""


@dataclass(frozen=True)
class Model:
    """A class of SGLang's models.

    Attributes:
        methods: its own; of one that hands its module's others out (`__getattr__`), METHOD too where those have it.
        bases: where they stand, those that are SGLang's models too.
        is_served: a checkpoint can name it (`EntryClass`).
    """

    methods: frozenset[str]
    bases: tuple[Place, ...]
    is_served: bool


@cache
def models() -> dict[Place, Model]:
    """All of them."""
    folder = Path(str(find_spec("sglang").origin)).parent / "srt/models"  # type: ignore[union-attr]
    found: dict[Place, Model] = {}
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        found |= read(module, ast.parse(path.read_text(encoding="utf-8")))
    return found


def read(module: str, tree: ast.Module) -> dict[Place, Model]:
    """The classes of one module."""
    entries = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if "EntryClass" in {ast.unparse(target) for target in getattr(node, "targets", [getattr(node, "target", None)])}
        for name in ast.walk(node.value)
        if isinstance(name, ast.Name)
    }
    imported = {
        name.asname or name.name: (str(node.module).removeprefix(_PACKAGE), name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(_PACKAGE)
        for name in node.names
    }
    own = {
        node.name: frozenset(part.name for part in node.body if isinstance(part, ast.FunctionDef))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    held = {METHOD} & frozenset().union(*own.values())
    return {
        (module, node.name): Model(
            own[node.name] | (held if "__getattr__" in own[node.name] else set()),
            tuple(imported.get(base.id, (module, base.id)) for base in node.bases if isinstance(base, ast.Name)),
            node.name in entries,
        )
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def methods_of(place: Place) -> frozenset[str]:
    """Methods of a class and of those that it comes from."""
    model = models().get(place)
    return frozenset() if model is None else model.methods.union(*map(methods_of, model.bases))


def served(name: str) -> list[Place]:
    """Where the classes of this name stand that a checkpoint can name."""
    return [place for place, model in models().items() if place[1] == name and model.is_served]


def drafted_for() -> set[str]:
    """Classes that a checkpoint can name and that hand their layers' states to a block drafter."""
    return {place[1] for place, model in models().items() if model.is_served and METHOD in methods_of(place)}


def block_drafters() -> dict[str, Place]:
    """Classes that a checkpoint can name and that take the states of a target's layers, by name."""
    return {
        place[1]: place for place, model in models().items() if model.is_served and DRAFTER_METHOD in methods_of(place)
    }
