"""A tiny target and a drafter that knows something of it, computed from a formula: nothing is trained or downloaded.

    python -m benchmarks tiny_pair FOLDER [--measure]

Writes FOLDER/target (a Qwen3 of three layers over bytes, with a tokenizer) and FOLDER/draft (a DFlash drafter of one
layer, block 8). Weights that are merely random cannot show a fault of the drafter: it is right as often with a garbled
context. So the pair is built:

* The target's first layer has heads that look a fixed number of tokens back. Its logits favour the tokens `FAR[0]` and
  `FAR[1]` tokens ago, and what the current token, its parent and two random layers say decides between the two: every
  token depends on the prefix, and on a node's own ancestors in the tree.
* The drafter has the two far heads alone. Its first choice is often right, its second one in many of the other cases,
  so that a tree accepts more than a chain, and a drafter that reads wrong keys accepts almost nothing.

Head size 64, two KV heads and norms on queries and keys: shapes that SGLang's kernels are commonly built for.
`--measure` says what the drafter is accepted for here, by Hugging Face's forward and this project's reference of the
tree, and how often bfloat16 chooses another token.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.gpu_cases import BLOCK_SIZE
from benchmarks.harness.byte_tokenizer import EOS_ID, MASK_ID, VOCABULARY, save_byte_tokenizer
from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter

HIDDEN, HEAD_DIM, HEADS, KV_HEADS, LAYERS = 256, 64, 4, 2, 3
INTERMEDIATE = 512
CONTEXT_LEN = 4096
ROPE_THETA = 100.0  # low, so that heads tell neighbouring tokens apart at every distance used here
FAR = (29, 37)
"""How many tokens back the two words are that the target chooses between; both longer than a block."""
SHARPNESS = 16.0  # weight of a query's norm times a key's: the next token's share of a far head is about e^-8
BIAS, CODE, OUT = 0, slice(64, 128), slice(128, 256)
"""Residual stream: a constant, the token's code (64 signs), what the layers say about the next token."""
FAR_WEIGHTS = (1.0, 0.86)
NEAR_WEIGHTS = (0.4, 0.95)
"""Of the current token and of its parent: the larger the second, the more a wrong mask changes."""
RANDOM_WEIGHT = 1.5
DRAFT_WEIGHTS = (1.0, 0.9)
TARGET_SCALE, DRAFT_SCALE = 0.3, 0.35
"""Of the logits: how sure the two models are."""


def config_of_target() -> dict[str, object]:
    """Its config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "dtype": "bfloat16",
    }


def config_of_drafter() -> DrafterConfig:
    """Its shape: the target's, with one layer."""
    return DrafterConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=INTERMEDIATE,
        vocab_size=VOCABULARY,
        num_target_layers=LAYERS,
        target_layer_ids=(0, 1),
        block_size=BLOCK_SIZE,
        mask_token_id=MASK_ID,
        mask_token="<mask>",
        rms_norm_eps=1e-6,
        rope_theta=ROPE_THETA,
        max_position_embeddings=CONTEXT_LEN,
    )


class Weights:
    """Seeded tensors of the pair."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        # What a code says about the next token: a rotation into OUT.
        self.say = self.orthogonal(OUT.stop - OUT.start)[:, :HEAD_DIM]
        self.codes = torch.randint(0, 2, (VOCABULARY, HEAD_DIM), generator=self.generator) * 2.0 - 1
        self.codes[MASK_ID] = 0

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator) / math.sqrt(shape[-1])

    def orthogonal(self, size: int) -> torch.Tensor:
        return torch.linalg.qr(self.random(size, size)).Q

    def embeddings(self) -> torch.Tensor:
        table = torch.zeros(VOCABULARY, HIDDEN)
        table[:, BIAS] = 8.0
        table[:, CODE] = self.codes
        return table

    def head(self) -> torch.Tensor:
        table = torch.zeros(VOCABULARY, HIDDEN)
        table[:, OUT] = self.codes @ self.say.T
        table[256:] = 0  # special tokens are never the answer
        return table

    def looking_back(self, distances: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projections of queries, keys and values: head h reads the code `distances[h]` tokens back, if any."""
        frequencies = ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        query, key = torch.zeros(HEADS, HEAD_DIM, HIDDEN), torch.zeros(KV_HEADS, HEAD_DIM, HIDDEN)
        for head, distance in enumerate(distances):
            angles = distance * frequencies
            query[head, :, BIAS] = torch.cat([angles.cos(), -angles.sin()])
        key[:, : HEAD_DIM // 2, BIAS] = 1.0
        value = torch.zeros(KV_HEADS, HEAD_DIM, HIDDEN)
        value[:, :, CODE] = torch.eye(HEAD_DIM)
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)

    def saying(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Output projection [HIDDEN, HEADS * 64]: each head's code through its map [64, 64], then to OUT."""
        table = torch.zeros(HIDDEN, HEADS * HEAD_DIM)
        for head, one in enumerate(maps):
            table[OUT, head * HEAD_DIM : (head + 1) * HEAD_DIM] = self.say @ one
        return table

    def to_out(self, columns: int, scale: float) -> torch.Tensor:
        table = torch.zeros(HIDDEN, columns)
        table[OUT] = scale * self.random(OUT.stop - OUT.start, columns)
        return table


def target_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The target's tensors by their Hugging Face names."""
    made = Weights(seed)
    norm = torch.zeros(HIDDEN)
    norm[OUT] = TARGET_SCALE
    state = {"model.embed_tokens.weight": made.embeddings(), "lm_head.weight": made.head(), "model.norm.weight": norm}
    eye = torch.eye(HEAD_DIM)
    # The next token is one ahead of the token that asks: FAR tokens before it are FAR - 1 back.
    heads = (FAR[0] - 1, FAR[1] - 1, 0, 1)
    maps = [
        eye * FAR_WEIGHTS[0],
        eye * FAR_WEIGHTS[1],
        *(weight * made.orthogonal(HEAD_DIM) for weight in NEAR_WEIGHTS),
    ]
    for index in range(LAYERS):
        name = f"model.layers.{index}"
        if index == 0:
            query, key, value = made.looking_back(heads)
            output = made.saying(maps)
        else:
            query, key = made.random(HEADS * HEAD_DIM, HIDDEN), made.random(KV_HEADS * HEAD_DIM, HIDDEN)
            value = made.random(KV_HEADS * HEAD_DIM, HIDDEN)
            output = made.to_out(HEADS * HEAD_DIM, RANDOM_WEIGHT)
        sharp = math.sqrt(SHARPNESS) if index == 0 else 1.5
        state |= {
            f"{name}.self_attn.q_proj.weight": query,
            f"{name}.self_attn.k_proj.weight": key,
            f"{name}.self_attn.v_proj.weight": value,
            f"{name}.self_attn.o_proj.weight": output,
            f"{name}.self_attn.q_norm.weight": torch.full((HEAD_DIM,), sharp),
            f"{name}.self_attn.k_norm.weight": torch.full((HEAD_DIM,), sharp),
            f"{name}.mlp.gate_proj.weight": made.random(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.up_proj.weight": made.random(INTERMEDIATE, HIDDEN),
            f"{name}.mlp.down_proj.weight": made.to_out(INTERMEDIATE, RANDOM_WEIGHT),
            f"{name}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{name}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
    return state


def drafter_of_target(seed: int = 0) -> DFlashDrafter:
    """The drafter: slot j of a block says what stands FAR tokens before position anchor + j."""
    made = Weights(seed)
    drafter = DFlashDrafter(config_of_drafter())
    eye = torch.eye(HEAD_DIM)
    query, key, value = made.looking_back((*FAR, 0, 0))
    maps = [eye * weight for weight in (*DRAFT_WEIGHTS, 0.0, 0.0)]
    norm = torch.zeros(HIDDEN)
    norm[OUT] = DRAFT_SCALE
    # Of the first feature what the embedding put there; the second one only makes the input wider.
    feature = torch.zeros(HIDDEN, 2 * HIDDEN)
    feature[BIAS, BIAS] = 1.0
    feature[CODE, CODE] = torch.eye(HEAD_DIM)
    sharp = torch.full((HEAD_DIM,), math.sqrt(SHARPNESS))
    state = {name: torch.zeros_like(one) for name, one in drafter.state_dict().items()}
    layer = "layers.0"
    state |= {
        "fc.weight": feature,
        "hidden_norm.weight": torch.ones(HIDDEN),
        "norm.weight": norm,
        f"{layer}.self_attn.q_proj.weight": query,
        f"{layer}.self_attn.k_proj.weight": key,
        f"{layer}.self_attn.v_proj.weight": value,
        f"{layer}.self_attn.o_proj.weight": made.saying(maps),
        f"{layer}.self_attn.q_norm.weight": sharp,
        f"{layer}.self_attn.k_norm.weight": sharp,
        f"{layer}.input_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}.post_attention_layernorm.weight": torch.ones(HIDDEN),
    }
    drafter.load_state_dict(state)
    return drafter


def write_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write FOLDER/target and FOLDER/draft in bfloat16; returns both."""
    return save_pair(folder, target_weights(seed), config_of_target(), seed)


def save_pair(
    folder: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, object], seed: int
) -> tuple[Path, Path]:
    """Write a target of these tensors and this config.json, and the drafter of `seed` beside it, in bfloat16."""
    target, draft = folder / "target", folder / "draft"
    target.mkdir(parents=True, exist_ok=True)
    halves = {name: one.to(torch.bfloat16).contiguous() for name, one in weights.items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_byte_tokenizer(target)
    export_drafter(drafter_of_target(seed), draft)
    return target, draft


def run(argv: Sequence[str], description: str, write: Callable[[Path], tuple[Path, Path]]) -> int:
    """Write a pair and print its two folders; with --measure, what it is accepted for, too."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", action="store_true", help="acceptance and ties, by Hugging Face on the processor")
    args = parser.parse_args(argv)
    pair = write(args.folder)
    if args.measure:
        from benchmarks.harness.tiny_measure import measure

        print(json.dumps(measure(*pair)))
    print(*pair, sep="\n")
    return 0


def main(argv: Sequence[str]) -> int:
    """Write the pair and print its two folders."""
    return run(argv, (__doc__ or "").split("\n", 1)[0], write_pair)
