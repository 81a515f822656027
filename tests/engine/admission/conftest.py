"""What tests of admission share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.one_process import one_process


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Folders of a small target and of a drafter that fits it, without weights."""
    from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

    return write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", DRAFTER)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter's folder, weights and all."""
    from tests.engine.admission.drafter_folders import export

    return export(tmp_path_factory.mktemp("drafter") / "draft")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In which SGLang's models can be built."""
    with one_process(tmp_path_factory.mktemp("rendezvous")):
        yield
