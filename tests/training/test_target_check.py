"""Which targets can be drafted for, what they are refused for, and that Llama's shape is not Llama alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.data.completers import GREEDY, LocalCompleter, end_token_ids
from ddtree_sglang.training.data.conversations import load_conversations
from ddtree_sglang.training.model.drafter_config import DrafterChoices
from ddtree_sglang.training.model.drafter_init import start_from_target
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.target_check import (
    check_target,
    default_start_layers,
    default_target_layers,
    target_fingerprint,
)
from tests.training.tiny import VOCABULARY, save_tiny_target, save_tokenizer, tiny_config, tiny_qwen3, tiny_target


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    tiny_qwen3().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def _check(folder: Path, **changes: Any) -> Any:
    choices = DrafterChoices(**{"mask_token": "mask", "block_size": 4} | changes)
    return check_target(folder, AutoTokenizer.from_pretrained(folder), choices)


def test_default_layers_are_those_of_the_shipped_drafter_and_fit_any_depth() -> None:
    assert default_target_layers(30) == (1, 8, 15, 22, 28)
    assert default_start_layers(30) == (27, 28, 29)
    for depth in range(2, 100):
        layers = default_target_layers(depth)
        assert list(layers) == sorted(set(layers))
        assert layers[-1] == depth - 2  # the last one is never captured
        assert len(layers) == min(5, max(1, depth - 2))
        assert default_start_layers(depth)[-1] == depth - 1


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_targets_of_this_shape_are_accepted_with_layers_of_their_depth(
    name: str, request: pytest.FixtureRequest
) -> None:
    config, start = _check(request.getfixturevalue(name))
    assert config.target_layer_ids == (1, 2)
    assert start == (1, 2, 3)
    assert (config.num_hidden_layers, config.mask_token_id) == (3, VOCABULARY - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token": "absent"}, "'absent' is not: pass --mask-token"),
        ({"target_layers": (0, 3)}, r"layers 0 to 2 of a target with 4 layers, got \[0, 3\]"),
        ({"start_layers": (2, 4)}, r"--start-layers must be layers 0 to 3 of this target, got \[4\]"),
        ({"block_size": 1}, "block_size must be at least 2"),
    ],
)
def test_flags_that_do_not_fit_the_target_are_refused(llama: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _check(llama, **changes)


SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": VOCABULARY}


@pytest.mark.parametrize(
    ("target", "finding"),
    [
        (GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=VOCABULARY)), "no rope_parameters"),
        (
            GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=16, **SMALL)),
            "it has no model.layers, model.norm",
        ),
        (
            Phi3ForCausalLM(Phi3Config(intermediate_size=16, pad_token_id=0, **SMALL)),
            r"layer 0 has no self_attn\.q_proj",
        ),
    ],
    ids=["positions", "modules", "projections"],
)
def test_other_architectures_are_refused_by_name(target: PreTrainedModel, finding: str, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=rf"must be of Llama's shape .*; {type(target).__name__} in .*{finding}"):
        _check(tmp_path, start_layers=(0, 1))


def _biased() -> LlamaForCausalLM:
    shape = tiny_target().config.to_dict() | {"attention_bias": True}
    return LlamaForCausalLM(LlamaConfig(**shape))


def test_layers_with_biases_are_not_copied_but_random_starts_may(tmp_path: Path) -> None:
    target = _biased()
    target.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has biases in self_attn\.q_proj, .* --random-start needs no layer to copy"):
        _check(tmp_path)
    assert _check(tmp_path, random_start=True)[0].num_hidden_layers == 3
    with pytest.raises(ValueError, match=r"layer 2 has biases in self_attn\.q_proj.*: pass --random-start"):
        start_from_target(DFlashDrafter(tiny_config(target)), target, (2, 3))


def test_norms_of_queries_and_keys_are_copied_where_there_are_some() -> None:
    target = tiny_qwen3()
    drafter = DFlashDrafter(tiny_config(target))
    start_from_target(drafter, target, (1, 3))
    for layer, index in zip(drafter.layers, (1, 3), strict=True):
        source = target.model.layers[index].self_attn
        assert torch.equal(layer.self_attn.q_norm.weight, source.q_norm.weight)
        assert torch.equal(layer.self_attn.k_norm.weight, source.k_norm.weight)
    start_from_target(drafter, tiny_target(), (1, 3))
    assert len(drafter.layers[0].self_attn.q_norm.weight.unique()) == 1


def test_fingerprint_tells_targets_of_one_shape_apart(llama: Path, qwen: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert target_fingerprint(copy) == target_fingerprint(llama) != target_fingerprint(qwen)
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert target_fingerprint(copy) != target_fingerprint(llama)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "more.safetensors").write_bytes(b"x")
    assert target_fingerprint(copy) != target_fingerprint(llama)
    with pytest.raises(ValueError, match="must be a Hugging Face folder"):
        target_fingerprint(tmp_path)


def test_a_row_ends_at_whichever_end_token_comes_first() -> None:
    target, prompts = tiny_qwen3(), [[i, i + 1] for i in range(10, 50)]
    local = LocalCompleter(target)
    assert local.end_ids == (2, 5)
    target.generation_config.eos_token_id = 2
    whole = local.complete(prompts, 60, GREEDY)
    first, second = (token for token, _ in Counter(row[20] for row in whole if len(row) > 20).most_common(2))
    target.generation_config.eos_token_id = [first, second]
    rows = local.complete(prompts, 60, GREEDY)
    assert {row[-1] for row in rows} >= {first, second}
    for row, uncut in zip(rows, whole, strict=True):
        assert not {first, second} & set(row[:-1])
        assert row[: len(uncut)] == uncut[: len(row)]
    with pytest.raises(ValueError, match="must say with which token it ends"):
        end_token_ids(object())


def test_qwen3_goes_all_the_way_with_default_layers(qwen: Path, tmp_path: Path) -> None:
    flags = ["--target", str(qwen), "--data", str(tmp_path / "data.npz"), "--work", str(tmp_path / "work")]
    flags += ["--threads", "1", "--float32", "--mask-token", "mask", "--block-size", "4", "--held-out-percent", "30"]
    data = ["--conversations", "60", "--generation-batch", "30", "--max-tokens", "90"]
    assert main(["generate", *flags, *data]) == 0
    assert len(load_conversations(tmp_path / "data.npz")) >= 60
    assert main(["train", *flags, "--steps", "2", "--rows", "2", "--anchors", "4"]) == 0
    assert main(["export", *flags, "--output", str(tmp_path / "drafter")]) == 0
    assert json.loads((tmp_path / "drafter" / "config.json").read_text())["dflash_config"]["target_layer_ids"] == [1, 2]
