"""The house as its imports draw it: rooms, arrows, floors. Reads source, imports none of it.

    python -m tests.architecture            write the picture in ddtree_sglang/docs/rooms.md

A room is a folder of modules; where a folder has folders, each module beside them is a room of its own. Imports count
wherever they stand in a file, unused and lazy ones too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "ddtree_sglang/docs/rooms.md"
TOPS = ("ddtree_sglang", "workers", "deploy", "benchmarks", "tests")

ORDER = (
    "ddtree_sglang.exceptions",
    "ddtree_sglang.config",
    "ddtree_sglang.cost_batches",
    "ddtree_sglang.whole_file",
    "ddtree_sglang.modelopt_file",
    "ddtree_sglang.core",
    "ddtree_sglang.kernels",
    "ddtree_sglang.contract",
    "ddtree_sglang.cpu_platform",
    "ddtree_sglang.engine",
    "ddtree_sglang.demo",
    "ddtree_sglang.training",
    "ddtree_sglang",
    "workers.progress",
    "workers.answers",
    "workers.config",
    "workers.cluster",
    "workers.replicas",
    "workers.http",
    "workers.app",
    "workers.startup",
    "workers.jobs",
    "workers",
    "deploy",
    "benchmarks",
    "tests",
)
"""From the ground up: an arrow goes to its own entry or to one further up in this list. The longest prefix counts."""


def module_name(path: Path) -> str:
    """Dotted name of a source file."""
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def source_files(*tops: str) -> list[Path]:
    """The Python files below these folders, in order."""
    return [path for top in tops or TOPS for path in sorted((ROOT / top).rglob("*.py"))]


def written_twice(source: str) -> list[str]:
    """Names that a module's own lines write more than once: what stands between them reads another value."""
    written = Counter(
        name.id
        for line in ast.parse(source).body
        if isinstance(line, ast.Assign | ast.AnnAssign)
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    )
    return sorted(name for name, times in written.items() if times > 1)


@cache
def _modules() -> frozenset[str]:
    return frozenset(module_name(path) for path in source_files())


def imported_modules(path: Path) -> set[str]:
    """Full name of every module that a file imports; `from package import module` names the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: imports are absolute, got a relative one; name the package")
            module = node.module or ""
            full = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in _modules() else module for name in full}
    return found


def entry_of(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    return max((entry for entry in ORDER if is_within(module, entry)), key=len)


def is_within(module: str, prefix: str) -> bool:
    """True for the module `prefix` and everything below it."""
    return module == prefix or module.startswith(prefix + ".")


def room_of(module: str) -> str:
    """The room that a module of ours stands in."""
    path = ROOT.joinpath(*module.split("."))
    folder = path if path.is_dir() else path.parent
    has_folders = any(child.is_dir() and (child / "__init__.py").is_file() for child in folder.iterdir())
    return module if has_folders else ".".join(folder.relative_to(ROOT).parts)


def arrows(*tops: str) -> dict[str, set[str]]:
    """Room -> the rooms of ours that it imports."""
    drawn: dict[str, set[str]] = {}
    for path in source_files(*tops):
        room = room_of(module_name(path))
        ours = {name for name in imported_modules(path) if name.split(".")[0] in TOPS}
        drawn.setdefault(room, set()).update(room_of(name) for name in ours)
        drawn[room].discard(room)
    return drawn


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths that end where they began; empty for a house in floors."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for following in sorted(graph.get(node, ())):
            visit(following, [*path, node])
        done.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Floor of each room: 1 on the ground, else one above the highest that it imports."""
    known: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((floor(below) for below in graph.get(room, ())), default=0)
        return known[room]

    for room in sorted(graph):
        floor(room)
    return known


def forbidden(folder: Path) -> list[str]:
    """What a folder's `__init__` says that it must not import: the names in backticks after "Must not import"."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = re.search(r"Must\s+not\s+import\s+(.*?)\.(?:\s|$)", docstring, re.DOTALL)
    return re.findall(r"`([\w.]+)`", sentence.group(1)) if sentence else []


def picture() -> str:
    """The product's rooms and arrows as a Mermaid chart, with a line per folder."""
    graph = arrows("ddtree_sglang", "workers")
    chart = ["```mermaid", "flowchart BT"]
    for top in ("ddtree_sglang", "workers"):
        rooms = sorted(room for room in graph if is_within(room, top) and room != top)
        chart += [f'  subgraph {top}_house["{top}"]']
        chart += [f'    {_id(room)}["{room.removeprefix(top + ".")}"]' for room in rooms] + ["  end"]
    chart += [f"  {_id(room)} --> {_id(below)}" for room in sorted(graph) for below in _direct(graph, room)]
    lines = ["# The rooms", "", "Drawn from the imports by `python -m tests.architecture`; a test keeps it true."]
    lines += ["An arrow points to what is imported; one that follows from others is left out.", "", *chart, "```", ""]
    lines += ["| room | what it holds |", "|---|---|", *_table()]
    return "\n".join(lines) + "\n"


def _direct(graph: dict[str, set[str]], room: str) -> Iterator[str]:
    """The arrows of a room that no longer way stands for."""
    for below in sorted(graph[room]):
        others = graph[room] - {below}
        if not any(below in _reached(graph, other) for other in others):
            yield below


def _reached(graph: dict[str, set[str]], room: str) -> set[str]:
    return {below for direct in graph.get(room, ()) for below in {direct, *_reached(graph, direct)}}


def _table() -> Iterator[str]:
    for path in source_files("ddtree_sglang", "workers", "deploy", "benchmarks"):
        if path.name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            yield f"| `{path.parent.relative_to(ROOT)}` | {' '.join(docstring.split())} |"


def _id(room: str) -> str:
    return room.replace(".", "_")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE}\n")
