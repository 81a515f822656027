"""A small Kimi-K3 for plain torch, its text part: every layer written from its formula, one token after the other.

Nothing here is SGLang's. A layer is Kimi Delta Attention (KDA) or latent attention without a rotation, then a dense
part or experts in a narrower space; layers read a mixture of what the blocks of layers before them began with. Names
of parameters are those of a published checkpoint, so that SGLang loads what is saved here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv1d, silu
from transformers import PreTrainedConfig, PreTrainedModel

NORM_EPS = 1e-6
"""Of the squared length of KDA's queries and keys."""


class KimiK3TextConfig(PreTrainedConfig):
    """Fields as a published `text_config` has them."""

    model_type = "kimi_linear"


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of mean square one, weighed."""
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Without a bias."""
    return nn.Linear(inputs, outputs, bias=False)


def situ(gate: torch.Tensor, up: torch.Tensor, config: Any) -> torch.Tensor:
    """Kimi-K3's gated activation: both parts are bounded smoothly."""
    beta, bound = config.activation_situ_beta, config.activation_situ_linear_beta
    return beta * torch.tanh(gate / beta) * torch.sigmoid(gate) * bound * torch.tanh(up / bound)


class Dense(nn.Module):
    """A feed-forward part of one expert."""

    def __init__(self, config: Any, intermediate_size: int) -> None:
        super().__init__()
        self.config = config
        self.gate_proj = linear(config.hidden_size, intermediate_size)
        self.up_proj = linear(config.hidden_size, intermediate_size)
        self.down_proj = linear(intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., H]` of the same."""
        down: torch.Tensor = self.down_proj(situ(self.gate_proj(x), self.up_proj(x), self.config))
        return down


class Expert(nn.Module):
    """One of many, in the narrower space."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.routed_expert_hidden_size, config.moe_intermediate_size
        self.config = config
        self.w1, self.w2, self.w3 = linear(size, inner), linear(inner, size), linear(size, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., L]` of the same."""
        out: torch.Tensor = self.w2(situ(self.w1(x), self.w3(x), self.config))
        return out


class Router(nn.Module):
    """Weights of the experts."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.count = config.num_experts_per_token
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.num_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., E]`, 0 for experts that a token does not get; a bias decides who is chosen, and weighs nothing."""
        scores = torch.sigmoid(x @ self.weight.T)
        chosen = (scores + self.e_score_correction_bias).topk(self.count, dim=-1).indices
        of_chosen = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        return of_chosen / of_chosen.sum(-1, keepdim=True)


class Experts(nn.Module):
    """Routed experts in a narrower space, with a norm behind them, and shared ones beside."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.routed_expert_hidden_size
        self.gate = Router(config)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.num_experts))
        self.shared_experts = Dense(config, config.moe_intermediate_size * config.num_shared_experts)
        self.routed_expert_down_proj = linear(config.hidden_size, size)
        self.routed_expert_norm = Norm(size, config.rms_norm_eps)
        self.routed_expert_up_proj = linear(size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., H]` of the same."""
        weights, narrow = self.gate(x), self.routed_expert_down_proj(x)
        routed = sum(weights[..., [index]] * expert(narrow) for index, expert in enumerate(self.experts))
        out: torch.Tensor = self.routed_expert_up_proj(self.routed_expert_norm(routed)) + self.shared_experts(x)
        return out


class DeltaAttention(nn.Module):
    """KDA: one matrix per head that forgets by channel, and is corrected towards each token's value."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        asked = config.linear_attn_config
        self.heads, self.head_dim, self.width = asked["num_heads"], asked["head_dim"], asked["short_conv_kernel_size"]
        self.lower_bound: float | None = asked.get("gate_lower_bound")
        size, hidden = self.heads * self.head_dim, config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (linear(hidden, size) for _ in range(4))
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(size, size, self.width, groups=size, bias=False) for _ in range(3)
        )
        self.b_proj, self.f_a_proj = linear(hidden, self.heads), linear(hidden, self.head_dim)
        self.f_b_proj = linear(self.head_dim, size)
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(size))
        self.o_norm = Norm(self.head_dim, config.rms_norm_eps)
        self.o_proj = linear(size, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, H]` of the same: S becomes S Diag(decay) (1 - beta k k^T) + beta v k^T, and answers with S q."""
        q, k, v = (
            self._by_head(self._convolved(project(x), convolution))
            for project, convolution in (
                (self.q_proj, self.q_conv1d),
                (self.k_proj, self.k_conv1d),
                (self.v_proj, self.v_conv1d),
            )
        )
        q, k = (one / (one.square().sum(-1, keepdim=True) + NORM_EPS).sqrt() for one in (q, k))
        decay = self._by_head(self._log_decay(self.f_b_proj(self.f_a_proj(x)))).exp()
        beta = torch.sigmoid(self.b_proj(x))[..., None]
        state = x.new_zeros(len(x), self.heads, self.head_dim, self.head_dim)  # [B, heads, values, keys]
        outputs = []
        for t in range(x.shape[1]):
            state = state * decay[:, t, :, None, :]
            known = (state @ k[:, t, :, :, None])[..., 0]
            state = state + (beta[:, t] * (v[:, t] - known))[..., None] * k[:, t, :, None, :]
            outputs.append((state @ q[:, t, :, :, None])[..., 0] * self.head_dim**-0.5)
        gated = self.o_norm(torch.stack(outputs, dim=1)) * torch.sigmoid(self._by_head(self.g_proj(x)))
        out: torch.Tensor = self.o_proj(gated.flatten(-2))
        return out

    def _log_decay(self, raw: torch.Tensor) -> torch.Tensor:
        """Of each channel `[B, T, heads * D]`: at most 0, and with a bound at least that."""
        rate = self.A_log.exp().repeat_interleave(self.head_dim)
        if self.lower_bound is not None:
            return self.lower_bound * torch.sigmoid(rate * (raw + self.dt_bias))
        return -rate * torch.nn.functional.softplus(raw + self.dt_bias)

    def _convolved(self, rows: torch.Tensor, convolution: nn.Conv1d) -> torch.Tensor:
        """Each channel over a token and those before it."""
        padded = torch.nn.functional.pad(rows.transpose(1, 2), (self.width - 1, 0))
        return silu(conv1d(padded, convolution.weight, groups=rows.shape[-1])).transpose(1, 2)

    def _by_head(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(-1, (self.heads, self.head_dim))


class LatentAttention(nn.Module):
    """Attention over one latent row for all heads, without positions, and a gate on what it gives."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.config, hidden = config.num_attention_heads, config, config.hidden_size
        key_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.q_a_proj, self.q_b_proj = (
            linear(hidden, config.q_lora_rank),
            linear(config.q_lora_rank, self.heads * key_dim),
        )
        self.q_a_layernorm = Norm(config.q_lora_rank, config.rms_norm_eps)
        self.kv_a_proj_with_mqa = linear(hidden, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = linear(config.kv_lora_rank, self.heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.g_proj = linear(hidden, self.heads * config.v_head_dim)
        self.o_proj = linear(self.heads * config.v_head_dim, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, H]` of the same."""
        config = self.config
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        latent, shared = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        of_heads = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        own, v = of_heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k = torch.cat([own, shared[:, None].expand(-1, self.heads, -1, -1)], dim=-1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        seen = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        out: torch.Tensor = self.o_proj(seen.transpose(1, 2).flatten(-2) * torch.sigmoid(self.g_proj(x)))
        return out


class Layer(nn.Module):
    """Attention and a feed-forward part, each of which reads a mixture."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        is_kda = index + 1 in config.linear_attn_config["kda_layers"]
        self.begins_block = index % config.attn_res_block_size == 0
        self.self_attn = DeltaAttention(config) if is_kda else LatentAttention(config)
        is_dense = index < config.first_k_dense_replace
        self.mlp = Dense(config, config.intermediate_size) if is_dense else Experts(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(size, eps), Norm(size, eps)
        self.self_attention_res_norm, self.mlp_res_norm = Norm(size, eps), Norm(size, eps)
        self.self_attention_res_proj, self.mlp_res_proj = linear(size, 1), linear(size, 1)


def mixture(begun: list[torch.Tensor], sum_: torch.Tensor, norm: Norm, project: nn.Linear) -> torch.Tensor:
    """Of the sums that blocks began with and the running one `[B, T, H]`, weighed by a score of each."""
    rows = torch.stack([*begun, sum_], dim=-2)
    mixed: torch.Tensor = (project(norm(rows)).softmax(dim=-2) * rows).sum(-2)
    return mixed


class Backbone(nn.Module):
    """Layers, which do not add up to one sum but to one of each block."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm, self.output_attn_res_norm = Norm(size, eps), Norm(size, eps)
        self.output_attn_res_proj = linear(size, 1)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """`last_hidden_state` `[B, T, H]`, and `hidden_states`: what each layer reads, and the last norm."""
        begun: list[torch.Tensor] = []
        sum_ = self.embed_tokens(input_ids)
        read = []
        for layer in self.layers:
            read.append(mixture(begun, sum_, layer.self_attention_res_norm, layer.self_attention_res_proj))
            attended = layer.self_attn(layer.input_layernorm(read[-1]))
            if layer.begins_block:
                begun.append(sum_)
                sum_ = attended
            else:
                sum_ = sum_ + attended
            mixed = mixture(begun, sum_, layer.mlp_res_norm, layer.mlp_res_proj)
            sum_ = sum_ + layer.mlp(layer.post_attention_layernorm(mixed))
        read.append(mixture(begun, sum_, self.output_attn_res_norm, self.output_attn_res_proj))
        return SimpleNamespace(last_hidden_state=self.norm(read[-1]), hidden_states=tuple(read))


class KimiK3LinearForCausalLM(PreTrainedModel):
    """What answers, as the lane asks a Hugging Face model."""

    config_class = KimiK3TextConfig

    def __init__(self, config: KimiK3TextConfig) -> None:
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Whoever makes one fills it."""

    def get_input_embeddings(self) -> nn.Module:
        """What a drafter shares."""
        return self.model.embed_tokens

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """`logits` `[B, T, V]`, `hidden_states`, and no cache."""
        out = self.model(input_ids)
        logits = self.lm_head(out.last_hidden_state)
        return SimpleNamespace(logits=logits, hidden_states=out.hidden_states, past_key_values=None)
