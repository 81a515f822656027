"""Every exception that the package raises on purpose, in one place."""

from __future__ import annotations


class DDTreeError(Exception):
    """Base class, so that a caller can catch everything of ours at once."""


class DDTreeConfigError(DDTreeError, ValueError):
    """Something that the user can fix: a flag, a file, a drafter that does not fit its target."""


class EngineContractError(DDTreeError, RuntimeError):
    """The installed SGLang is not the one that this version was written against."""
