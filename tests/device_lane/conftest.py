"""What tests of the device lane share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.device_lane.pairs import one_thread


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
