"""What tests of the training command share."""

from __future__ import annotations

import pytest

from tests.training.tiny import save_tiny_target, tiny_target, write_conversations


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags naming a tiny target and its conversations."""
    folder = tmp_path_factory.mktemp("inputs")
    data = write_conversations(folder / "data.npz", tiny_target())
    return ["--target", str(save_tiny_target(folder / "target")), "--data", str(data)]
