"""What the tests know of a server and of the models it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A ready server: its address, its log, and its trace where it was asked for one."""

    url: str
    log: Path
    trace: Path


@dataclass(frozen=True)
class Pair:
    """Folders of the embedded target and its drafter. `DDTREE_TEST_MODEL` / `DDTREE_TEST_DRAFT` name others."""

    model: str
    draft: str
