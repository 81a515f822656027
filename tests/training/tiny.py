"""A tiny random target and conversations in its vocabulary, small enough to train on within a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ddtree_sglang.training.model.drafter_config import DrafterConfig, drafter_config_for

VOCABULARY = 97
LAYER_IDS = (0, 2)

# What every tiny target has, Llama or Qwen3.
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}


def tiny_target(hidden_size: int = 48) -> LlamaForCausalLM:
    """Four layers, tied embeddings, seeded."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **SHAPE,
    )
    return LlamaForCausalLM(config).eval()


def tiny_qwen3() -> Qwen3ForCausalLM:
    """A Qwen3 of the tiny shape: norms on queries and keys, a head of its own, and two end tokens."""
    torch.manual_seed(1)
    config = Qwen3Config(
        hidden_size=48,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=[2, 5],
        **SHAPE,
    )
    target = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.q_norm.weight.uniform_(0.5, 2)
            layer.self_attn.k_norm.weight.uniform_(0.5, 2)
    return target


def save_tiny_target(folder: Path, hidden_size: int = 48) -> Path:
    """The target and a word-level tokenizer (words w0, w1, ..., mask) as a Hugging Face folder."""
    tiny_target(hidden_size).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Words w0, w1, ... and mask, and a chat template, into a model's folder."""
    vocabulary = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"mask": VOCABULARY - 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    wrapped.chat_template = "{% for m in messages %}w7 w1 {{ m.content }} w2 {% endfor %}w3 w4"
    wrapped.save_pretrained(folder)


def tiny_config(target: PreTrainedModel, block_size: int = 4) -> DrafterConfig:
    """A two-layer drafter for it."""
    return drafter_config_for(
        target.config,
        mask_token_id=VOCABULARY - 1,
        mask_token="mask",
        target_layer_ids=LAYER_IDS,
        num_layers=2,
        block_size=block_size,
    )


def write_conversations(path: Path, target: LlamaForCausalLM, count: int = 60, length: int = 40) -> Path:
    """Random prompts of five tokens, answered greedily by the target."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, VOCABULARY - 1, (count, 5), generator=generator)
    with torch.inference_mode():
        rows = target.generate(prompts, max_new_tokens=length - 5, do_sample=False, pad_token_id=0, eos_token_id=-1)
    np.savez(
        path,
        tokens=rows.reshape(-1).numpy().astype(np.uint16),
        offsets=np.arange(count + 1, dtype=np.int64) * rows.shape[1],
        answer_start=np.full(count, 5, dtype=np.int32),
    )
    return path


def read_curve(work: Path, folder: str = "checkpoints") -> list[dict[str, Any]]:
    """What a training run has written of its course; `folder` is that of its stage."""
    return [json.loads(line) for line in (work / folder / "curve.jsonl").read_text().splitlines()]
