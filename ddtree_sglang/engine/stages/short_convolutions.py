"""LFM2's short convolutions in a tree's verify.

SGLang's verify of them is a chain's (models/lfm2.py, shortconv_target_verify): it hands its kernel nodes one after the
other. The kernel takes a tree as well, whose links the backend keeps, as for other recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_update
from sglang.srt.model_executor.forward_context import get_attn_backend

Convolve = Callable[[Any, torch.Tensor, Any, int, str], torch.Tensor]


def along_paths(chain: Convolve) -> Convolve:
    """In the place of `shortconv_target_verify`: nodes' inputs `[B * N, C]` are convolved along their paths."""

    @wraps(chain)
    def convolve(conv: Any, inputs: torch.Tensor, conv_metadata: Any, draft_token_num: int, arch: str) -> torch.Tensor:
        hybrid_backend = get_attn_backend()
        links = hybrid_backend.short_conv_backend.forward_metadata
        if links.retrieve_next_token is None:  # one node per request
            return chain(conv, inputs, conv_metadata, draft_token_num, arch)
        batch_size = len(conv_metadata.cache_indices)
        convolved = causal_conv1d_update(
            inputs.view(batch_size, draft_token_num, -1).transpose(1, 2),
            conv_metadata.layer_cache.conv[0],
            conv.conv_weight,
            conv.conv_bias,
            activation=None,
            conv_state_indices=conv_metadata.cache_indices,
            intermediate_conv_window=conv_metadata.layer_cache.intermediate_conv_window[0],
            intermediate_state_indices=torch.arange(batch_size, dtype=torch.int32, device=inputs.device),
            retrieve_next_token=links.retrieve_next_token,
            retrieve_next_sibling=links.retrieve_next_sibling,
            retrieve_parent_token=links.retrieve_parent_token,
        )
        return convolved.transpose(1, 2).reshape(len(inputs), -1)

    return convolve
