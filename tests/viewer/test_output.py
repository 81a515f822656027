"""What is printed while nobody reads any more."""

from __future__ import annotations

import os
import sys

import pytest

from ddtree_sglang.viewer.output import show


def test_a_reader_that_went_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        show("a line\n" * 10_000)
        show("and more\n")
