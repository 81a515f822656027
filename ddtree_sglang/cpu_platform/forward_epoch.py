"""A counter of forward passes, so that layers can share what depends only on the pass.

The attention backend advances it when it plans a pass; operators use it to recognise values from an earlier one.
"""

from __future__ import annotations

_epoch = 0


def advance() -> None:
    """Start a new forward pass: whatever was remembered about the last one is void."""
    global _epoch
    _epoch += 1


def current() -> int:
    """Number of the forward pass under way."""
    return _epoch
