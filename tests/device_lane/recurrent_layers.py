"""What SGLang's recurrent layers need in the lane: their Triton kernels run as they are, but for a prefill's.

The kernels that verify a tree, that decode and that convolve are Triton's and are interpreted. The prefill's gated
delta rule takes no float32, so here it is the recurrence itself. What else is replaced is what asks a GPU for
something: its generation, the number of its processors, its current device, and whether a tensor is CUDA's where
states of nodes are copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch

from tests.device_lane.doors import kernel_door
from tests.device_lane.module_patches import Patch, on_import, replace

CHUNK = 64
"""Tokens behind which the prefill's kernel hands out a state, for the prefix cache (fla/chunk.py, CHUNK_SIZE)."""

SCATTERS = ("fused_mamba_state_scatter_with_mask", "fused_conv_window_scatter_with_mask")
"""Kernels that copy states of nodes, whose tensors have to be CUDA's (mamba_state_scatter_triton.py)."""


def install_recurrent_layers() -> None:
    """Put these in place. Twice is as once."""
    kernels = "sglang.kernels.ops"
    _launch_without_measuring()
    on_import("sglang.kernels.jit.utils.arch", Patch(_launch_one_after_the_other))
    on_import(f"{kernels}.attention.fla.layernorm_gated", Patch(_ask_no_gpu))
    on_import(f"{kernels}.mamba.mamba_state_scatter_triton", Patch(_copy_states))
    on_import("sglang.srt.layers.attention.linear.kernels.gdn_triton", Patch(_prefill))
    on_import("sglang.srt.layers.attention.mamba.mamba", Patch(_convolve_as_on_cuda))
    on_import("sglang.srt.models.qwen3_next", Patch(_norms_on_the_host))


@kernel_door
def chunk_gated_delta_rule(
    q: torch.Tensor,  # [1, T, H, K]
    k: torch.Tensor,  # [1, T, H, K]
    v: torch.Tensor,  # [1, T, HV, V], HV a multiple of H
    g: torch.Tensor,  # [1, T, HV], logarithms of the decays
    beta: torch.Tensor,  # [1, T, HV]
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,  # [slots, HV, V, K], updated in place
    initial_state_indices: torch.Tensor | None = None,  # [B], the requests' slots
    cu_seqlens: torch.Tensor | None = None,  # [B + 1], where each request's tokens begin
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    inplace_update: bool = True,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """SGLang's prefill of gated delta nets (kernels/ops/attention/fla/chunk.py), one token after the other.

    Returns:
        `[1, T, HV, V]` outputs, None, and `[1, chunks, HV, V, K]` the states that each request's chunks begin with.
    """
    assert initial_state is not None
    assert initial_state_indices is not None
    assert cu_seqlens is not None
    asked = (head_first, use_qk_l2norm_in_kernel, inplace_update)
    assert asked == (False, True, True), "SGLang's backend asks for no other form"
    per_key = v.shape[2] // k.shape[2]
    queries, keys = (_normalized(one[0]).repeat_interleave(per_key, dim=1) for one in (q, k))
    queries = queries * (k.shape[-1] ** -0.5 if scale is None else scale)
    outputs, chunk_states = torch.zeros_like(v), []
    bounds = cu_seqlens.tolist()
    for slot, start, end in zip(initial_state_indices.tolist(), bounds[:-1], bounds[1:], strict=True):
        state = initial_state[slot].float()
        for token in range(start, end):
            if (token - start) % CHUNK == 0:
                chunk_states.append(state.clone())
            state = state * g[0, token].exp()[:, None, None]
            known = torch.einsum("hvk,hk->hv", state, keys[token])
            change = (v[0, token] - known) * beta[0, token][:, None]
            state = state + change[:, :, None] * keys[token][:, None, :]
            outputs[0, token] = torch.einsum("hvk,hk->hv", state, queries[token])
        initial_state[slot] = state
    return outputs, None, torch.stack(chunk_states)[None]


def _normalized(rows: torch.Tensor) -> torch.Tensor:
    return rows / (rows.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _prefill(module: ModuleType) -> None:
    parameters = ("q", "k", "v", "g", "beta", "scale", "initial_state", "initial_state_indices", "cu_seqlens")
    others = ("head_first", "use_qk_l2norm_in_kernel", "inplace_update")
    replace(module, "chunk_gated_delta_rule", chunk_gated_delta_rule, (*parameters, *others))


def _launch_without_measuring() -> None:
    """A kernel that picks its fastest shape by measuring takes its first one."""
    from triton.runtime.autotuner import Autotuner

    Autotuner._bench = lambda *_, **__: [0.0]  # type: ignore[method-assign]


def _launch_one_after_the_other(module: ModuleType) -> None:
    def is_arch_support_pdl() -> bool:
        return False

    replace(module, "is_arch_support_pdl", is_arch_support_pdl, ())


def _ask_no_gpu(module: ModuleType) -> None:
    def _get_sm_count(device: torch.device) -> int:
        return 132

    replace(module, "_get_sm_count", _get_sm_count, ("device",))
    replace(module, "device_context", contextlib.nullcontext)


def _convolve_as_on_cuda(module: ModuleType) -> None:
    """The convolutions' kernels, which the module imports where it finds CUDA."""
    from sglang.kernels.ops.mamba import causal_conv1d_triton

    module.__dict__.setdefault("causal_conv1d_fn_triton", causal_conv1d_triton.causal_conv1d_fn)
    module.__dict__.setdefault("causal_conv1d_update_triton", causal_conv1d_triton.causal_conv1d_update)


def _norms_on_the_host(module: ModuleType) -> None:
    """Their weights would be put where the process's current CUDA device is."""
    original = module.FusedRMSNormGated

    def made(*args: Any, device: Any, **kwargs: Any) -> torch.nn.Module:
        norm: torch.nn.Module = original(*args, **kwargs)
        return norm

    replace(module, "FusedRMSNormGated", made)


def _copy_states(module: ModuleType) -> None:
    for name in SCATTERS:
        replace(module, name, _as_on_cuda(getattr(module, name)))


def _as_on_cuda(launch: Callable[..., None]) -> Callable[..., None]:
    @wraps(launch)
    def launched(*args: Any, **kwargs: Any) -> None:
        before = torch.Tensor.is_cuda
        torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment,method-assign]
        try:
            launch(*args, **kwargs)
        finally:
            torch.Tensor.is_cuda = before  # type: ignore[method-assign]

    return launched
