"""What DDTREE may answer otherwise than a plain server, by name and with the reason. Tests hold each to be needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.conformance.comparing import Difference
from tests.e2e.conformance.shapes import Shape

REFUSED: dict[str, str] = {}
"""Features that DDTREE answers with a 400, with the reason: no shape asks for them, and each level shows the 400."""


@dataclass(frozen=True)
class Allowed:
    """A difference that is no fault: of which shapes, in which fields, and why."""

    reason: str
    holds: Callable[[Shape, Difference], bool]


def _is_own_details(shape: Shape, difference: Difference) -> bool:
    own = isinstance(difference.ddtree, dict) and difference.ddtree.keys() == {"spec_tokens_details"}
    is_added = shape.is_drawn and difference.plain is False
    return difference.path.endswith(".sglext") and (is_added or (own and difference.plain == "no such field"))


ALLOWED: dict[str, Allowed] = {
    "speculation's own details": Allowed(
        "asked for details of speculation, SGLang sends them where there is speculation, and no `sglext` without",
        _is_own_details,
    ),
}
"""By name; an exception that no shape needs fails a test."""


def exception_for(shape: Shape, difference: Difference) -> str | None:
    """The name of the exception that allows this difference, None when there is none."""
    return next((name for name, allowed in ALLOWED.items() if allowed.holds(shape, difference)), None)
