"""How many tokens the KV cache holds by default on a machine whose memory is shared with everything else.

On a GPU the engine takes what is left of the card. Main memory belongs to the whole machine, so the default
is a fixed share of it, and never more than a few full contexts.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch

KV_SHARE_OF_MEMORY = 0.15
"""Share of the memory that is free at start which the KV cache may take."""

MAX_CONTEXTS = 16
"""More full-length contexts than this are never reserved by default."""

MIN_TOKENS = 4096


def default_max_total_tokens(server_args: Any) -> int | None:
    """KV slots to allocate by default, or `None` to let the engine decide from `mem_fraction_static`.

    `None` when the model is not plain multi-head attention, whose bytes per token we cannot know.
    """
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.configs.model_config import AttentionArch

    # The plugin interface hands over a recorder; the model config is memoised on the record below it.
    config = model_config_of(getattr(server_args, "_cfg", server_args))
    if config.attention_arch != AttentionArch.MHA:
        return None
    per_token = kv_bytes_per_token(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.get_num_kv_heads(server_args.tp_size),
        head_dim=config.head_dim,
        dtype=config.dtype,
    )
    budget = int(psutil.virtual_memory().available * KV_SHARE_OF_MEMORY)
    return tokens_within(budget, per_token, config.context_len)


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of K and V that one token takes over all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize


def tokens_within(budget_bytes: int, bytes_per_token: int, context_len: int) -> int:
    """Tokens that fit `budget_bytes`, at most `MAX_CONTEXTS` contexts and at least `MIN_TOKENS`."""
    return max(MIN_TOKENS, min(budget_bytes // bytes_per_token, MAX_CONTEXTS * context_len))
