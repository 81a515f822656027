"""The shipped drafter is whole, and damage is noticed before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ddtree_sglang.demo.drafter import DRAFTER_FOLDER, shipped_drafter
from ddtree_sglang.training.model.export import load_drafter


def test_shipped_drafter_loads_and_fits_the_embedded_target() -> None:
    config = load_drafter(shipped_drafter()).config
    assert (config.hidden_size, config.vocab_size, config.num_target_layers) == (576, 49152, 30)
    assert config.block_size == 8


def test_shipped_drafter_is_at_most_40_megabytes() -> None:
    assert (shipped_drafter() / "model.safetensors").stat().st_size <= 40_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_missing_or_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "drafter"
    shutil.copytree(DRAFTER_FOLDER, folder)
    assert shipped_drafter(folder) == folder
    if name == "manifest.json":
        (folder / name).unlink()
    else:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=name):
        shipped_drafter(folder)
