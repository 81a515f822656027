"""The pair without weights: a DFlash drafter that DDTREE accepts for its target, and nothing that needs a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import dummy_pair
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target


def test_pair_has_the_published_shape_and_fits(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    folders = dummy_pair.write_pair(tmp_path, tokenizer)
    target, draft = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert check_drafter_fits_target(draft, target).block_size == 16
    assert (target["num_hidden_layers"], draft["num_hidden_layers"]) == (36, 5)
    assert (folders[0] / "tokenizer.json").exists()
    # 8.2 billion parameters, as the name says.
    hidden, heads, width = target["hidden_size"], target["num_attention_heads"] * 128, target["intermediate_size"]
    layer = 2 * hidden * heads + 2 * hidden * target["num_key_value_heads"] * 128 + 3 * hidden * width
    assert 8.1e9 < target["num_hidden_layers"] * layer + 2 * target["vocab_size"] * hidden < 8.3e9


@pytest.mark.parametrize("shape", list(dummy_pair.SHAPES))
def test_every_shape_fits_and_has_a_tokenizer_of_its_own(tmp_path: Path, shape: str) -> None:
    from transformers import AutoTokenizer

    folders = dummy_pair.write_pair(tmp_path, None, shape)
    target, draft = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert check_drafter_fits_target(draft, target).block_size == 16
    assert AutoTokenizer.from_pretrained(folders[0])("ok")["input_ids"] == list(b"ok")
