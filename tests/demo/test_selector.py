"""The shipped selector is whole and fits the shipped drafter, and both are written as one that a server takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ddtree_sglang.demo import selector
from ddtree_sglang.demo.drafter import shipped_drafter
from ddtree_sglang.demo.manifest import manifest_problems, sha256_of
from ddtree_sglang.demo.selector import SELECTOR_FOLDER, main, shipped_selector
from ddtree_sglang.engine.admission.drafter_families import family_of
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights
from ddtree_sglang.training.model.export import load_drafter

RESULTS = Path(__file__).parents[2] / "benchmarks/results/selector-by-kind.jsonl"


def test_the_drafter_with_its_selector_is_the_one_that_was_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddtree_sglang.training.score.results import weights_digest

    folder = tmp_path / "pairs"
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    model, plain = load_drafter(folder), load_drafter(shipped_drafter()).state_dict()
    scored = json.loads(RESULTS.read_text().splitlines()[0])["provenance"]["drafter"]
    assert weights_digest(model) == scored["weights_sha256"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.items())
    family = family_of(json.loads((folder / "config.json").read_text()))
    assert (family.name, family.refusal) == ("DFlash2", None)
    assert family.scores == "the token before: a selector of rank 64 among 16 candidates"
    check_drafter_weights(folder)
    assert manifest_problems(folder) == []
    assert (folder / "model.safetensors").stat().st_size <= 40_000_000


def test_damage_and_another_drafter_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "selector"
    shutil.copytree(SELECTOR_FOLDER, copy)
    monkeypatch.setattr(selector, "SELECTOR_FOLDER", copy)
    assert shipped_selector() == copy
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["drafter_sha256"] == sha256_of(shipped_drafter() / "model.safetensors")
    (copy / "manifest.json").write_text(json.dumps(manifest | {"drafter_sha256": "0" * 64}))
    assert main([str(tmp_path / "out")]) == 2
    assert "serves the drafter that it was trained for, of SHA-256 000000000000" in capsys.readouterr().err
    content = bytearray((copy / "selector.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "selector.safetensors").write_bytes(content)
    assert main([str(tmp_path / "out")]) == 2
    assert "selector.safetensors has another SHA-256" in capsys.readouterr().err
    (copy / "selector.safetensors").unlink()
    assert main([str(tmp_path / "out")]) == 2
    assert "which a wheel leaves out" in capsys.readouterr().err
    assert main([]) == 2
