"""The metadata that makes a bare checkout a plugin is what installing it would have written."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from benchmarks import register_checkout


def test_entry_points_equal_the_installed_packages(tmp_path: Path) -> None:
    written = metadata.PathDistribution(register_checkout.write_metadata(tmp_path))
    installed = metadata.distribution("ddtree-sglang")
    assert written.metadata["Name"] == installed.metadata["Name"]
    assert written.version == installed.version
    assert {(e.group, e.name, e.value) for e in written.entry_points} == {
        (e.group, e.name, e.value) for e in installed.entry_points
    }


def test_one_folder_is_asked_for(capsys: object) -> None:
    assert register_checkout.main([]) == 2
