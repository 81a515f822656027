"""An adapter of random weights: PEFT's names and shapes, and the change that it says it makes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ddtree_sglang.demo.random_adapter import shapes_of, write_adapter


def test_modules_of_a_model_folder(tmp_path: Path) -> None:
    weights = {
        "model.embed_tokens.weight": torch.zeros(9, 4),
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(6, 4),
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(6),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(4, 8),
        "model.norm.weight": torch.zeros(4),
    }
    save_file(weights, tmp_path / "model.safetensors")
    assert shapes_of(tmp_path) == {
        "model.layers.0.self_attn.q_proj": (6, 4),
        "model.layers.0.mlp.down_proj": (4, 8),
    }


def test_files_hold_the_factors_of_what_is_added(tmp_path: Path) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (600, 400)}
    ((name, added),) = write_adapter(tmp_path / "adapter", shapes, rank=8, seed=1, scale=0.5).items()
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    down, up = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert (down.shape, up.shape) == ((8, 400), (600, 8))
    assert torch.allclose(config["lora_alpha"] / config["r"] * up @ down, added)
    product = torch.randn(1000, 400, generator=torch.Generator().manual_seed(0)) @ added.T
    assert 0.4 < float(product.std()) < 0.6
    again = write_adapter(tmp_path / "again", shapes, rank=8, seed=1, scale=0.5)[name]
    other = write_adapter(tmp_path / "other", shapes, rank=8, seed=2, scale=0.5)[name]
    assert torch.equal(again, added)
    assert not torch.equal(other, added)


def test_an_embedding_has_factors_that_are_looked_up(tmp_path: Path) -> None:
    shapes = {"model.embed_tokens": (900, 64)}
    ((name, added),) = write_adapter(tmp_path / "adapter", shapes, rank=8, seed=1, scale=0.5).items()
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    down, up = (weights[f"base_model.model.{name}.lora_embedding_{part}"] for part in "AB")
    assert (down.shape, up.shape) == ((8, 900), (64, 8))
    assert "embed_tokens" in config["target_modules"]
    assert torch.allclose(config["lora_alpha"] / config["r"] * (up @ down).T, added)
    assert 0.4 < float(added.std()) < 0.6
