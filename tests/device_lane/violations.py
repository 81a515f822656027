"""What the lane raises when a contract of the GPU path is broken."""

from __future__ import annotations


class LaneViolation(RuntimeError):
    """A caller broke a rule that a GPU kernel does not check: there it is a wrong token or an illegal access."""

    def __init__(self, rule: str, found: object) -> None:
        self.rule = rule
        self.found = found
        super().__init__(f"{rule}; found: {found}")


def require(holds: bool, rule: str, found: object) -> None:
    """Raise LaneViolation with the rule and the value found, unless the rule holds."""
    if not holds:
        raise LaneViolation(rule, found)
