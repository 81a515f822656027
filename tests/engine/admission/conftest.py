"""What tests of admission share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Folders of a small target and of a drafter that fits it, without weights."""
    from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

    return write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", DRAFTER)
