"""Fields of a dataclass that carry their meaning, and the command-line flags that are made from them."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}


@dataclass(frozen=True)
class Description:
    """What is said of a field beside its type and default."""

    meaning: str  # with the unit, and the range where there is one
    flag: str | None  # None: two dashes and the field's name
    choices: tuple[str, ...] | None
    parse: Callable[[str], Any] | None  # None: the field's type
    fixed: bool  # a resumed run must have the value that its checkpoint has


def described(
    default: Any,
    meaning: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    fixed: bool = True,
) -> Any:
    """A field with a default value and a `Description`.

    The flag of a bool switches the default off or on, so the flag of one that is True by default needs a name, and its
    `meaning` says what the flag does.
    """
    return field(default=default, metadata={"description": Description(meaning, flag, choices, parse, fixed)})


def descriptions(config: type) -> Iterator[tuple[Field[Any], Description]]:
    """The described fields of a dataclass, in order."""
    for one in fields(config):
        if "description" in one.metadata:
            yield one, one.metadata["description"]


def add_flags(parser: argparse.ArgumentParser, title: str, config: type) -> None:
    """Add a group with one flag per described field of a dataclass."""
    group, types_of = parser.add_argument_group(title), get_type_hints(config)
    for one, what in descriptions(config):
        text = what.meaning.replace("%", "%%")
        if isinstance(one.default, bool):
            group.add_argument(_flag(one, what), action="store_true", help=text)
            continue
        if one.default is not None:
            text += f" (default: {one.default})"
        parse = what.parse or _single_type(types_of[one.name])
        metavar = None if what.choices else METAVARS.get(parse, one.name.upper())
        group.add_argument(
            _flag(one, what), type=parse, choices=what.choices, default=one.default, metavar=metavar, help=text
        )


def from_flags(config: type[Config], args: argparse.Namespace, **given: Any) -> Config:
    """The dataclass with the values of its flags, and of `given` for fields that are not described."""
    for one, what in descriptions(config):
        value = getattr(args, _flag(one, what).removeprefix("--").replace("-", "_"))
        given[one.name] = value != one.default if isinstance(one.default, bool) else value
    return config(**given)


def layer_ids(text: str) -> tuple[int, ...]:
    """Layer numbers of a comma-separated list.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"layers must be numbers from 0 with commas between, such as 1,8,15, got {text!r}."
        ) from None


def _flag(one: Field[Any], what: Description) -> str:
    return what.flag or "--" + one.name.replace("_", "-")


def _single_type(hint: Any) -> Any:
    """The type of a field, without None where it may be that."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint
