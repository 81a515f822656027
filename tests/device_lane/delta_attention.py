"""What Kimi Delta Attention (KDA) and Kimi-K3 need in the lane: their kernels run as they are, but for a prefill's.

The kernels that convolve, verify a tree and norm outputs are Triton's and are interpreted. The prefill's works on
chunks of bfloat16, so here it is the recurrence itself. What mixes the sums of blocks is made for rows of 1024 numbers.
"""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import softplus

from tests.device_lane.doors import kernel_door
from tests.device_lane.module_patches import Patch, on_import, replace

CHUNK = 64
"""Tokens behind which the prefill hands out a state, for the prefix cache (fla/kda.py, chunk_kda_fwd)."""
ROW = 32
"""Of a row, which one program of the kernels that mix takes at once; the tiny pair's hidden size."""

_PARAMETERS = (
    *("q", "k", "v", "g", "beta", "scale", "initial_state", "initial_state_indices", "use_qk_l2norm_in_kernel"),
    *("cu_seqlens", "A_log", "dt_bias", "lower_bound", "output_intermediate_states", "track_state"),
    *("track_chunk_idx", "beta_is_raw", "chunk_indices", "chunk_offsets", "kwargs"),
)


def install_delta_attention() -> None:
    """Put these in place. Twice is as once."""
    on_import("sglang.srt.layers.attention.linear.kernels.kda_triton", Patch(_prefill))
    on_import("sglang.srt.layers.attn_residual", Patch(_mix_short_rows))


@kernel_door
def chunk_kda(
    q: torch.Tensor,  # [1, T, H, K]
    k: torch.Tensor,  # [1, T, H, K]
    v: torch.Tensor,  # [1, T, H, V]
    g: torch.Tensor,  # [1, T, H, K], what decays are made of
    beta: torch.Tensor,  # [1, T, H], before its sigmoid
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,  # [slots, H, V, K], updated in place
    initial_state_indices: torch.Tensor | None = None,  # [B], the requests' slots
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.Tensor | None = None,  # [B + 1], where each request's tokens begin
    A_log: torch.Tensor | None = None,  # [1, 1, H, 1]
    dt_bias: torch.Tensor | None = None,  # [H * K]
    lower_bound: float | None = None,
    output_intermediate_states: bool = False,
    track_state: torch.Tensor | None = None,  # [B, H, V, K], what the prefix cache keeps of each request
    track_chunk_idx: torch.Tensor | None = None,  # [B], the chunk before which that is, or -1
    beta_is_raw: bool = False,
    chunk_indices: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """SGLang's prefill of KDA (kernels/ops/attention/fla/kda.py), one token after the other.

    Returns:
        `[1, T, H, V]` outputs, and with `output_intermediate_states` `[1, chunks, H, V, K]` the states that each
        request's chunks begin with.
    """
    assert initial_state is not None
    assert initial_state_indices is not None
    assert cu_seqlens is not None
    assert A_log is not None
    assert dt_bias is not None
    asked = (use_qk_l2norm_in_kernel, beta_is_raw, scale, chunk_indices, chunk_offsets, kwargs)
    assert asked == (True, True, None, None, None, {}), "SGLang's backend asks for no other form outside of a graph"
    decays = _decays(g[0], A_log, dt_bias, lower_bound)
    queries, keys = (one[0] / (one[0].square().sum(-1, keepdim=True) + 1e-6).sqrt() for one in (q, k))
    shares = beta[0].sigmoid()
    outputs, chunk_states = torch.zeros_like(v), []
    bounds = cu_seqlens.tolist()
    for index, (start, end) in enumerate(pairwise(bounds)):
        slot = int(initial_state_indices[index])
        state = initial_state[slot].float()
        tracked = -1 if track_chunk_idx is None else int(track_chunk_idx[index])
        for token in range(start, end):
            if (token - start) % CHUNK == 0:
                chunk_states.append(state.clone())
                if track_state is not None and (token - start) // CHUNK == tracked:
                    track_state[index] = state
            state = state * decays[token][:, None, :]
            change = shares[token][:, None] * (v[0, token] - torch.einsum("hvk,hk->hv", state, keys[token]))
            state = state + torch.einsum("hv,hk->hvk", change, keys[token])
            outputs[0, token] = torch.einsum("hvk,hk->hv", state, queries[token]) * k.shape[-1] ** -0.5
        initial_state[slot] = state
    return (outputs, torch.stack(chunk_states)[None]) if output_intermediate_states else outputs


def _decays(raw: torch.Tensor, rates: torch.Tensor, bias: torch.Tensor, bound: float | None) -> torch.Tensor:
    """Of each token's channels, `[T, H, K]` between 0 and 1."""
    rate, raised = rates.reshape(-1, 1).exp(), raw + bias.view(raw.shape[1:])
    logarithms = -rate * softplus(raised) if bound is None else bound * torch.sigmoid(rate * raised)
    return logarithms.exp()


def _prefill(module: ModuleType) -> None:
    replace(module, "chunk_kda", chunk_kda, _PARAMETERS)


def _mix_short_rows(module: ModuleType) -> None:
    replace(module, "_BLOCK_H", ROW)
