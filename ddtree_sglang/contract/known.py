"""Tables that hold for the files that are installed, kept on disk: the same bytes need no second check.

Reading what a table needs to know is 0.02 s, parsing it 0.7 to 2 s, in each of a server's processes. A check that found
nothing wrong is kept with a digest of every file that it read. Whoever changes one of them, the table or the checker is
checked anew. A file that cannot be read or written changes nothing but the time.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from ddtree_sglang.contract import check, source
from ddtree_sglang.contract.check import Row
from ddtree_sglang.contract.source import digest_of


def contract_folder() -> Path | None:
    """`contract` in `$DDTREE_CACHE`, else in `~/.cache/ddtree_sglang`; None for a user without a home."""
    try:
        return Path(os.environ.get("DDTREE_CACHE") or "~/.cache/ddtree_sglang").expanduser() / "contract"
    except RuntimeError:
        return None


class Known:
    """What is kept of one table; `folder` None keeps nothing."""

    def __init__(self, rows: Sequence[Row], folder: Path | None) -> None:
        checker = _checker()
        self.path: Path | None = None
        if folder is not None and checker is not None:
            # Environments that share a home have files of their own.
            kind = (tuple(map(tuple, rows)), sys.version_info[:2], sys.prefix, checker)
            self.path = folder / f"{digest_of(repr(kind))[:16]}.json"

    def holds(self) -> bool:
        """Whether the table was found to hold for exactly the files that are installed now."""
        if self.path is None:
            return False
        try:
            digests = json.loads(self.path.read_text(encoding="utf-8"))
            return bool(digests) and all(source.digest_of_installed(path) == kept for path, kept in digests.items())
        except (OSError, ValueError, AttributeError):
            return False

    def keep(self, digests: Mapping[str, str]) -> None:
        """The table holds for files with these digests (`Source.digests`); replaces what was kept, in one step."""
        if self.path is None:
            return
        # As `ddtree_sglang.whole_file` does it; the contract imports nothing but the standard library.
        partial = self.path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(digests), encoding="utf-8")
            partial.replace(self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@cache
def _checker() -> str | None:
    """A digest of the code that checks; None where it has no source, as in an archive."""
    try:
        return digest_of("".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (check, source)))
    except (OSError, ValueError):
        return None
