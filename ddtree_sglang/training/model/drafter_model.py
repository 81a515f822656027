"""The DFlash drafter as a trainable torch module, numerically equal to SGLang's `DFlashDraftModel`.

One call evaluates many blocks of several conversations: block a of a conversation sees the context features
of the positions before its anchor, and itself (bidirectionally); never another block. That is what
`srt/models/dflash.py` of SGLang 0.5.23 computes one block at a time with a KV cache: context keys and values
are `kv_proj(hidden_norm(fc(features)))`, keys normalised per head and rotated at the context token's own
position; block tokens use pre-norm Qwen3 layers on the target's embeddings.

The module holds no embedding and no LM head: both are the target's (arXiv 2602.06036, section 3).
Letters: C conversations, A anchors each, S block size, T context length, H hidden, d head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddtree_sglang.training.model.candidate_selector import CandidateSelector
from ddtree_sglang.training.model.drafter_config import DrafterConfig

Rope = tuple[Tensor, Tensor]  # cosines and sines


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary embedding in NeoX halves with frequencies theta ** (-2i/d), computed at each call."""

    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", theta**-exponents, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of [...] positions, each [..., 1, d/2] float32 (1: for the heads)."""
        angles = positions.float()[..., None, None] * self.inv_freq
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., d] by tables [..., d/2] that broadcast over the head dimension before d."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class BlockAttention(nn.Module):
    """Attention of block tokens over context features and their own block."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of x [..., H], both [..., KV, d]; rope tables [..., 1, d/2]."""
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        return rotate(self.k_norm(k), *rope).to(v.dtype), v

    def forward(
        self,
        x: Tensor,  # [C, A, S, H] normalised block tokens
        context: Tensor,  # [C, T, H] projected context features
        block_rope: Rope,
        context_rope: Rope,
        context_bias: Tensor,  # [C, 1, 1, A, 1, T] float32, 0 where the anchor may attend, else -inf
    ) -> Tensor:
        num_conversations, num_anchors, block, _ = x.shape
        groups = self.heads // self.kv_heads
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        q = rotate(q, *block_rope) * self.head_dim**-0.5
        k, v = self.keys_values(x, block_rope)
        q = q.to(v.dtype).unflatten(3, (self.kv_heads, groups)).permute(0, 3, 4, 1, 2, 5)
        # q: [C, KV, G, A, S, d]
        context_k, context_v = self.keys_values(context, context_rope)
        context_k, context_v = (t.transpose(1, 2) for t in (context_k, context_v))  # [C, KV, T, d]
        rows = (num_conversations, self.kv_heads, groups * num_anchors * block)
        scores_context = torch.matmul(q.reshape(*rows, self.head_dim), context_k.transpose(-1, -2))
        scores_context = scores_context.view(*q.shape[:-1], -1).float() + context_bias
        k, v = (t.permute(0, 3, 1, 2, 4)[:, :, None] for t in (k, v))  # [C, KV, 1, A, S, d]
        scores_block = torch.matmul(q, k.transpose(-1, -2)).float()
        weights = torch.softmax(torch.cat([scores_context, scores_block], dim=-1), dim=-1).to(v.dtype)
        weights_context, weights_block = weights[..., :-block], weights[..., -block:]
        out = torch.matmul(weights_context.reshape(*rows, -1), context_v).view(q.shape)
        out = out + torch.matmul(weights_block, v)
        projected: Tensor = self.o_proj(out.permute(0, 3, 4, 1, 2, 5).flatten(-3))
        return projected


class DrafterMLP(nn.Module):
    """Gated SiLU feed-forward."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DrafterLayer(nn.Module):
    """Pre-norm layer: attention, feed-forward, both residual."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = BlockAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DrafterMLP(config)

    def forward(
        self,
        hidden: Tensor,  # [C, A, S, H] residual stream
        context: Tensor,
        block_rope: Rope,
        context_rope: Rope,
        context_bias: Tensor,
    ) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(normed, context, block_rope, context_rope, context_bias)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class DFlashDrafter(nn.Module):
    """The drafter without embedding and LM head: block embeddings and context features in, hidden states out."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(config.feature_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DrafterLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta)
        self.candidate_selector = (
            CandidateSelector(config.hidden_size, config.vocab_size, config.selector_rank)
            if config.selector_rank
            else None
        )

    def block_token_ids(self, anchor_tokens: Tensor) -> Tensor:
        """Input ids [..., S] of blocks that start with the given bonus tokens [...]."""
        ids = anchor_tokens[..., None].repeat_interleave(self.config.block_size, dim=-1)
        ids[..., 1:] = self.config.mask_token_id
        return ids

    def forward(self, block_embeds: Tensor, features: Tensor, anchors: Tensor) -> Tensor:
        """Hidden states of all block slots, after the final norm.

        Args:
            block_embeds: [C, A, S, H] target embeddings of `[bonus, MASK x D]`.
            features: [C, T, F*H] context features of positions 0..T-1; right padding is never attended
                because an anchor only sees positions before it.
            anchors: [C, A] int64 position of each block's bonus token, at most T.

        Returns:
            [C, A, S, H] float32; slot j >= 1 predicts the token at position anchor + j.
        """
        context = self.hidden_norm(self.fc(features))  # [C, T, H]
        token_index = torch.arange(features.shape[1], device=features.device)
        hidden_from = token_index >= anchors[..., None]  # [C, A, T]
        context_bias = torch.zeros(hidden_from.shape, device=features.device)
        context_bias = context_bias.masked_fill(hidden_from, float("-inf"))[:, None, None, :, None, :]
        slots = anchors[..., None] + torch.arange(block_embeds.shape[2], device=anchors.device)  # [C, A, S]
        block_rope = self.rotary(slots)
        context_rope = self.rotary(token_index)
        hidden = block_embeds.float()
        for layer in self.layers:
            hidden = layer(hidden, context, block_rope, context_rope, context_bias)
        out: Tensor = self.norm(hidden)
        return out
