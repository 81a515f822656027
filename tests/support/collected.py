"""A plugin of pytest that writes what was collected, `{id: markers}`, to the file that `SUPPORT_COLLECTED` names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

VARIABLE = "SUPPORT_COLLECTED"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Called by pytest once it knows its tests."""
    found = {item.nodeid: sorted({mark.name for mark in item.iter_markers()}) for item in session.items}
    Path(os.environ[VARIABLE]).write_text(json.dumps(found), encoding="utf-8")
