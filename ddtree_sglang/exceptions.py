"""The exceptions that several rooms raise or that a user meets; a room's own stand in that room."""

from __future__ import annotations


class DDTreeError(Exception):
    """Base class, so that a caller can catch everything of ours at once."""


class DDTreeConfigError(DDTreeError, ValueError):
    """Something that the user can fix: a flag, a file, a drafter that does not fit its target."""


class EngineContractError(DDTreeError, RuntimeError):
    """The installed SGLang is not the one that this version was written against."""


class ModelSourceError(DDTreeError, RuntimeError):
    """The embedded model cannot be prepared; the message says what is missing and what to do."""


class DemoNotInstalledError(ModelSourceError):
    """A part of the demo is not installed: the target, a package that reads it, or the drafter's weights.

    Serving a model of your own needs none of them.
    """


class DrafterFilesError(DDTreeError, RuntimeError):
    """The shipped drafter's files are not the ones that this version was released with."""
