"""What a process needs before it computes: the device, and stand-ins where SGLang asks CUDA itself."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from tests.device_lane import door_launches, graphs, streams, tensors, triton_launches
from tests.device_lane.device import mode
from tests.device_lane.install import LaneTorch
from tests.device_lane.settings import LaneSettings

_installed = False
_kept: list[torch.library.Library] = []
"""What would be undone where nobody holds it."""


def install_device() -> None:
    """Make this process one of the lane. Harmless when called again."""
    global _installed
    if _installed:
        return
    _installed = True
    settings = LaneSettings.from_environment()
    streams.install()
    streams.late = settings.late
    _install_memory_queries()
    _install_products()
    _allocate_host_memory()
    _install_seeded_noise()
    _take_cuda_branches()
    tensors.install()
    triton_launches.install()
    door_launches.install()
    mode.__enter__()
    if settings.mutation:
        from tests.device_lane.lifted import LIFTED
        from tests.device_lane.mutations import MUTATIONS

        if settings.mutation not in LIFTED:
            MUTATIONS[settings.mutation]()


def _install_memory_queries() -> None:
    for module in (torch.cpu, torch.cuda):
        answers: dict[str, Any] = {
            "is_current_stream_capturing": graphs.is_capturing,
            "graph_pool_handle": lambda: (0, 0),
            "empty_cache": lambda: None,
            "mem_get_info": lambda _=None: (1 << 30, 1 << 30),
            "memory_allocated": lambda _=None: 0,
            "max_memory_allocated": lambda _=None: 0,
            "memory_reserved": lambda _=None: 0,
            "reset_peak_memory_stats": lambda _=None: None,
            "current_device": lambda: 0,
            "set_device": lambda _: None,
        }
        for name, answer in answers.items():
            setattr(module, name, answer)
    # A kernel's launcher switches to its tensors' device; a host's module has none to switch to.
    torch.cpu.device = lambda _: nullcontext()  # type: ignore[attr-defined]


def _install_products() -> None:
    """Of two matrices in another dtype than theirs, which torch has on CUDA alone."""

    def product(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.mm(first.to(dtype), second.to(dtype))

    _kept.append(torch.library.Library("aten", "IMPL"))
    _kept[-1].impl("mm.dtype", product, "CPU")


def _allocate_host_memory() -> None:
    """What is kept by KV slot on the host is not registered with CUDA."""
    from sglang.srt.state_capturer import base

    def allocate(dims: tuple[int, ...], dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return torch.empty(dims, dtype=dtype)

    base.ALLOC_MEMORY_FUNCS = defaultdict(lambda: allocate)


def _take_cuda_branches() -> None:
    """Where SGLang asks for CUDA by name and then launches Triton kernels, the lane does as CUDA does."""
    from sglang.kernels.ops.grammar import bitmask_ops
    from sglang.kernels.ops.speculative import cache_locs
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar, XGrammarGrammarBackend
    from sglang.srt.disaggregation import prefill
    from sglang.srt.distributed import parallel_state
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.mem_cache import memory_pool
    from sglang.srt.model_executor import forward_batch_info
    from sglang.srt.models import dflash
    from sglang.srt.speculative import dflash_worker_v2

    def apply_vocab_mask(_: Any, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        bitmask_ops.apply_token_bitmask_inplace_triton(logits, vocab_mask)

    for module, name, answer in (
        (bitmask_ops, "get_device_core_count", lambda *_: 1),
        (XGrammarGrammar, "apply_vocab_mask", apply_vocab_mask),
        (XGrammarGrammarBackend, "apply_vocab_mask", partial(apply_vocab_mask, None)),
        (cache_locs, "_is_cuda", True),
        (dflash_worker_v2, "is_cuda", lambda: True),
        (memory_pool, "_is_cuda", True),
        # Storing a token's keys and values has a kernel in CUDA, which the same branch asks for.
        (memory_pool, "can_use_store_cache", lambda *_: False),
        # The tokens of each group under DP attention are copied from pinned memory.
        (forward_batch_info, "torch", LaneTorch()),
        # So are the slots of keys that another server is sent.
        (prefill, "torch", LaneTorch()),
        # A selector's first candidates under DP attention, which has no graph of the drafter.
        (dflash, "_flashinfer_top_k", None),
        # Which adapter each token of all groups is for goes through an operator that is CUDA's alone.
        (parallel_state, "inplace_all_reduce", _all_reduce_in_place),
        # These collectives go through operators that are registered for a device of its own.
        (GroupCoordinator, "all_gather_into_tensor", _all_gather),
        (GroupCoordinator, "reduce_scatter_tensor", _reduce_scatter),
    ):
        if not hasattr(module, name):
            raise RuntimeError(f"{module.__name__} has no {name} any more: look at what it asks before a launch")
        setattr(module, name, answer)


def _all_reduce_in_place(tensor: torch.Tensor, group_name: str) -> None:
    from sglang.srt.distributed.parallel_state import _groups

    torch.distributed.all_reduce(tensor, group=_groups[group_name]().device_group)


def _all_gather(group: Any, output: torch.Tensor, input: torch.Tensor) -> None:
    """NCCL counts numbers, Gloo the ranks' rows; `output` may have a dimension of ranks before them."""
    group._all_gather_into_tensor(output.view(-1, *input.shape[1:]), input)


def _reduce_scatter(group: Any, output: torch.Tensor, input: torch.Tensor) -> None:
    """Gloo's copies the result when it is waited for, which would be the host's copy in a graph."""
    reduced = group.all_reduce(input.clone()).view(group.world_size, -1)
    output.copy_(reduced[group.rank_in_group].view_as(output))


def _install_seeded_noise() -> None:
    """SGLang hashes on a CPU with a compiled operator, elsewhere with this kernel."""
    from sglang.kernels.ops.sampling import murmur_hash
    from sglang.srt.layers import sampler

    def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor) -> torch.Tensor:
        num_rows, num_columns = len(seed), len(col_indices)
        hashed = torch.empty((num_rows, num_columns), dtype=torch.uint32, device=seed.device)
        block = 1024
        grid = (num_rows, -(-num_columns // block))
        murmur_hash.murmur_hash32_kernel[grid](
            seed, positions, col_indices, hashed, num_rows, num_columns, BLOCK_SIZE=block
        )
        return hashed

    sampler.murmur_hash32 = murmur_hash32
    # Compiled by torch on a GPU; its compiler cannot look into an interpreted kernel.
    sampler.multinomial_with_seed = sampler.multinomial_with_seed._torchdynamo_orig_callable
