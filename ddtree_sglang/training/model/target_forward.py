"""A target's forward for writing and training at once: all rows begin at position 0 and stand at one position.

Without padding on the left there is one mask and one angle for all rows, keys lie in memory that is taken once, and a
step costs what its products cost. Norms and feed-forwards are those of the Hugging Face model whose weights are used.
Knows Llama's attention, Qwen2's biases and Qwen3's norms; `check_forward` refuses other targets by name.
Letters: B rows, T tokens, H hidden, V vocabulary, d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddtree_sglang.training.model.drafter_model import Rope, rotate

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3")
"""Those whose angles do not depend on the length of the text."""

KEYS_AT_ONCE = 32
"""Keys are read in whole multiples of this, so that few shapes of products occur."""


class Seen(NamedTuple):
    """What a target made of texts."""

    features: Tensor  # [B, T, F*H] streams after the chosen layers
    states: Tensor  # [B, T, H] behind the last norm, which the head makes logits of


@dataclass(frozen=True)
class KeyMemory:
    """Memory for the keys and values of all layers, taken once and laid out anew for other numbers of rows."""

    keys: Tensor  # [layers, elements]
    values: Tensor

    def shaped(self, rows: int, length: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Keys and values as [layers, rows, length, d]; `rows` counts each key head of a conversation."""
        size = rows * length * head_dim
        shape = (-1, rows, length, head_dim)
        return self.keys[:, :size].view(shape), self.values[:, :size].view(shape)


def check_forward(folder: Path, longest: int) -> None:
    """Raises ValueError where the target has parts that `TargetForward` does not know, or a shorter text."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    name = ", ".join(getattr(config, "architectures", None) or [type(config).__name__])
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    problems = []
    if config.model_type not in MODEL_TYPES:
        problems.append(f"its type is {config.model_type}")
    elif rope not in ROPE_TYPES:
        problems.append(f"its rotary embedding is of type {rope}")
    elif getattr(config, "sliding_window", None):
        problems.append(f"it attends in a window of {config.sliding_window} tokens")
    if problems:
        raise ValueError(
            f"this stage computes {', '.join(MODEL_TYPES)} itself; {name} in {folder}: {problems[0]}. Use the stages "
            "generate and train."
        )
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"conversations must fit the target's {config.max_position_embeddings} positions, the longest would have "
            f"{longest}: lower --max-tokens, or pass --long-every 0."
        )


class TargetForward:
    """The forward of a Hugging Face model, whose weights it shares."""

    def __init__(self, source: Any, longest: int) -> None:
        """`longest` is the most tokens that a text will have."""
        self.head: Tensor = source.get_output_embeddings().weight.detach()  # [V, H]
        self.device = self.head.device
        self._model = source.model
        rotary = source.model.rotary_emb
        angles = torch.arange(longest, device=self.device).float()[:, None] * rotary.inv_freq.float()
        # [longest, 1, d/2], the 1 for heads.
        self._cos, self._sin = (table[:, None] * rotary.attention_scaling for table in (angles.cos(), angles.sin()))
        attention = source.model.layers[0].self_attn
        self._head_dim = int(attention.head_dim)
        self._kv_heads = attention.k_proj.out_features // self._head_dim

    def key_memory(self, rows: int, length: int) -> KeyMemory:
        """Memory for so many conversations of so many tokens.

        Raises:
            ValueError: the device has less.
        """
        shape = (len(self._model.layers), rows * self._kv_heads * length * self._head_dim)
        size = 2 * shape[0] * shape[1] * self.head.element_size()
        print(f"keys of {rows} conversations of {length} tokens: {size / 2**30:.2f} GiB", flush=True)
        try:
            return KeyMemory(*(torch.zeros(shape, dtype=self.head.dtype, device=self.device) for _ in range(2)))
        except RuntimeError as error:
            raise ValueError(
                f"the keys of {rows} conversations need {size / 2**30:.2f} GiB on {self.device}, which it does not "
                "have: lower --generation-batch or --max-tokens."
            ) from error

    @torch.no_grad()
    def see(self, ids: Tensor, layers: tuple[int, ...]) -> Seen:
        """Read texts [B, T] int64, padded on the right, which nothing before sees."""
        x, rope = self._model.embed_tokens(ids), (self._cos[: ids.shape[1]], self._sin[: ids.shape[1]])
        features = []
        for index, layer in enumerate(self._model.layers):
            q, k, v = (part.transpose(1, 2) for part in self._projected(layer, x, rope))
            scale = layer.self_attn.scaling
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            x = self._after_attention(layer, x, mixed.transpose(1, 2))
            if index in layers:
                features.append(x)
        return Seen(torch.cat(features, -1), _normed(self._model.norm, x))

    @torch.no_grad()
    def step(self, tokens: Tensor, position: int, memory: KeyMemory, length: int) -> Tensor:
        """Logits [B, V] after the tokens [B], all at this position of texts of up to `length` tokens.

        Expects that the positions before it were stepped through with the same memory and length.
        """
        rows = len(tokens) * self._kv_heads
        keys, values = memory.shaped(rows, length, self._head_dim)
        x, rope = self._model.embed_tokens(tokens), (self._cos[position], self._sin[position])
        read = min(length, -(-(position + 1) // KEYS_AT_ONCE) * KEYS_AT_ONCE)
        to_come = torch.arange(read, device=self.device) > position
        for index, layer in enumerate(self._model.layers):
            q, k, v = self._projected(layer, x, rope)
            keys[index, :, position] = k.reshape(rows, -1)
            values[index, :, position] = v.reshape(rows, -1)
            queries = q.reshape(rows, -1, self._head_dim)
            scores = torch.bmm(queries, keys[index, :, :read].transpose(1, 2)).float() * layer.self_attn.scaling
            weights = scores.masked_fill_(to_come, float("-inf")).softmax(-1).to(v.dtype)
            x = self._after_attention(layer, x, torch.bmm(weights, values[index, :, :read]).view(q.shape))
        return F.linear(_normed(self._model.norm, x), self.head)

    def _projected(self, layer: Any, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values [..., heads, d], of the stream x [..., H]."""
        attention, normed = layer.self_attn, _normed(layer.input_layernorm, x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (one(normed).unflatten(-1, (-1, self._head_dim)) for one in projections)
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        q, k = (rotate(one.float(), *rope).to(v.dtype) for one in (q, k))
        return q, k, v

    def _after_attention(self, layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
        """The stream behind a layer, from the heads' sums [..., heads, d]."""
        x = x + layer.self_attn.o_proj(mixed.flatten(-2))
        out: Tensor = x + layer.mlp(_normed(layer.post_attention_layernorm, x))
        return out


def _normed(norm: Any, x: Tensor) -> Tensor:
    """What the model's own norm gives, in fewer launches."""
    return F.rms_norm(x.float(), norm.weight.shape, None, norm.variance_epsilon).to(x.dtype) * norm.weight
