"""Where the source of a package is read: what is installed, a folder, or a wheel that is not installed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from ddtree_sglang.exceptions import DDTreeConfigError


class Source:
    """Modules of a source tree as syntax trees, each parsed at most once.

    Args:
        read: from a path inside the tree, such as `sglang/srt/server_args.py`, to its text; None if there is none.

    Attributes:
        digests: of each path that was asked for, a digest of its text, or "" where there is none.
    """

    def __init__(self, read: Callable[[str], str | None]) -> None:
        self._text_of = read
        self.digests: dict[str, str] = {}
        self._trees: dict[str, ast.Module | None] = {}
        self._packages: set[str] = set()

    def tree(self, module: str) -> ast.Module | None:
        """The syntax tree of a module or package, or None."""
        if module not in self._trees:
            path = module.replace(".", "/")
            text = self._read(f"{path}.py")
            if text is None and (text := self._read(f"{path}/__init__.py")) is not None:
                self._packages.add(module)
            self._trees[module] = None if text is None else ast.parse(text)
        return self._trees[module]

    def _read(self, path: str) -> str | None:
        text = self._text_of(path)
        self.digests[path] = digest_of(text)
        return text

    def origin(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a `from ... import` statement in `module` names, relative ones resolved."""
        if not node.level:
            return node.module or ""
        above = node.level - (module in self._packages)
        package = module.rsplit(".", above)[0] if above else module
        return f"{package}.{node.module}" if node.module else package


@cache
def installed() -> Source:
    """The packages of this environment; none of them is imported."""
    return Source(_read_installed)


def digest_of_installed(path: str) -> str:
    """What `Source.digests` holds of a path that is read from this environment now."""
    return digest_of(_read_installed(path))


def digest_of(text: str | None) -> str:
    """Of a file's text; "" where there is none."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()


def _read_installed(path: str) -> str | None:
    top, _, rest = path.partition("/")
    for folder in _folders_of(top) if rest else ():
        if (folder / rest).is_file():
            return (folder / rest).read_text(encoding="utf-8")
    return None


@cache
def _folders_of(package: str) -> tuple[Path, ...]:
    spec = importlib.util.find_spec(package)
    return tuple(Path(place) for place in (spec.submodule_search_locations if spec else None) or ())


def engine_at(place: str) -> tuple[str, Source]:
    """Version and source of an SGLang that need not be installed.

    Args:
        place: a wheel, a folder that holds `sglang`, that folder itself, or a checkout of SGLang's repository.

    Raises:
        DDTreeConfigError: there is no SGLang there.
    """
    path = Path(place).expanduser()
    if path.is_file() and zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
        if "sglang/srt/server_args.py" in names:
            return _version(names), Source(partial(_read_packed, archive, frozenset(names)))
    for root in (path, path / "python", path.parent):
        if path.is_dir() and (root / "sglang/srt/server_args.py").is_file():
            names = [f"{child.name}/" for child in root.glob("sglang-*.dist-info")]
            return _version(names), Source(partial(_read_file, root))
    raise DDTreeConfigError(
        f"an engine must be a wheel or a folder with sglang/srt/server_args.py, {place!r} is neither; give the file "
        "that `pip download --no-deps sglang==VERSION` makes, a site-packages folder, or a checkout."
    )


def _read_file(root: Path, name: str) -> str | None:
    path = root / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _read_packed(archive: zipfile.ZipFile, names: frozenset[str], name: str) -> str | None:
    return archive.read(name).decode("utf-8") if name in names else None


def _version(names: list[str]) -> str:
    """SGLang's version by the folder that every wheel carries; a checkout has none."""
    found = (re.match(r"sglang-([^/]+)\.dist-info/", name) for name in names)
    return next((match.group(1) for match in found if match), "of unknown version")
