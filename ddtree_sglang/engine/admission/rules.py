"""Tables of what is refused by the server's arguments, and the one way to ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class ArgumentRule(NamedTuple):
    """One combination of server arguments that DDTREE refuses."""

    broken: Callable[[Any], bool]
    message: str


def broken_rule(rules: Iterable[ArgumentRule], cfg: Any) -> str | None:
    """The message of the first rule that these arguments break, None if they break none."""
    return next((rule.message for rule in rules if rule.broken(cfg)), None)
