"""SGLang's hierarchical cache in the lane: host memory that nothing pins, and its copies by torch instead of kernels.

Of the copies those of `--hicache-io-backend direct`: they are handed tensors, the others addresses
(mem_cache/pool_host/mha.py, mla.py, mamba.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from tests.device_lane.module_patches import Patch, on_import, package_folder, replace, require_signature

COPIES = ("--hicache-ratio", "2", "--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first")
FLAGS = ("--enable-hierarchical-cache", *COPIES)
PAGES_FIRST = (*FLAGS, "--hicache-mem-layout", "page_first_direct")
"""Where all layers of a page lie together on the host, as SGLang wants it of recurrent layers' states."""


def install_host_cache() -> None:
    """Host pools are made and filled without CUDA. Twice is as once; before `sgl_kernel` is replaced.

    Raises:
        PinnedNameError: sglang-kernel's copy takes other arguments.
    """
    global _installed
    if _installed:
        return
    _installed = True
    for copy in _OF_LAYERS_FIRST + _OF_PAGES_FIRST:
        require_signature(package_folder("sgl_kernel") / "kvcacheio.py", copy.__name__, copy)
    for pool in ("mha", "mla", "mamba"):
        on_import(f"sglang.srt.mem_cache.pool_host.{pool}", Patch(_copy_by_torch))
    on_import("sglang.srt.mem_cache.pool_host.base", Patch(_reserve_nothing))


_installed = False


def _reserve_nothing(module: ModuleType) -> None:
    """A pool of kilobytes, on a machine that has less than 10 GiB left; nothing of it is pinned."""
    replace(module, "HICACHE_HOST_MEMORY_RESERVE_BYTES", 0)
    # Pages on their way from storage are made anew, and would be pinned as well.
    module.HostKVCache.pin_memory = property(lambda _: False, lambda *_: None)


def _copy_by_torch(module: ModuleType) -> None:
    def allocate(dims: tuple[int, ...], dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return torch.full(dims, torch.nan, dtype=dtype)

    replace(module, "ALLOC_MEMORY_FUNCS", defaultdict(lambda: allocate))
    # CUDA's branch alone imports them.
    for copy in _OF_LAYERS_FIRST + _OF_PAGES_FIRST:
        setattr(module, copy.__name__, copy)


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy rows `src_indices` of each tensor to rows `dst_indices` of the other; both are whole pages in order.

    Raises:
        ValueError: a list of rows is no list of whole pages.
    """
    _check_pages(page_size, src_indices, dst_indices)
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.to(target.device)] = source[src_indices.to(source.device)].to(target.device)


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[torch.Tensor],  # [pages, layers, page_size, ...] each, on the host
    dst_ptrs: Sequence[torch.Tensor],  # [slots, ...] each, of one layer
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Copy whole pages of one layer to the device."""
    _check_pages(page_size, src_indices, dst_indices)
    pages = src_indices[::page_size] // page_size
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        rows = source[pages.to(source.device), layer_id]
        target[dst_indices.to(target.device)] = rows.reshape(-1, *target.shape[1:]).to(target.device)


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[torch.Tensor],  # [slots, ...] each: all layers of the first target, then those of the second
    dst_ptrs: Sequence[torch.Tensor],  # [pages, layers, page_size, ...] each, on the host
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy whole pages of all layers to the host."""
    _check_pages(page_size, src_indices, dst_indices)
    pages, num_layers = dst_indices[::page_size] // page_size, len(src_ptrs) // len(dst_ptrs)
    for index, source in enumerate(src_ptrs):
        target = dst_ptrs[index // num_layers]
        rows = source[src_indices.to(source.device)].to(target.device)
        target[pages.to(target.device), index % num_layers] = rows.reshape(len(pages), *target.shape[2:])


_OF_LAYERS_FIRST = (transfer_kv_direct,)
_OF_PAGES_FIRST = (transfer_kv_per_layer_direct_pf_lf, transfer_kv_all_layer_direct_lf_pf)


def _check_pages(page_size: int, *lists: torch.Tensor) -> None:
    for indices in lists:
        pages = indices.view(-1, page_size)
        steps = torch.arange(page_size, dtype=indices.dtype)
        if bool((pages % page_size != steps).any() or (pages - pages[:, :1] != steps).any()):
            raise ValueError(f"rows of whole pages of {page_size} are copied, got {indices.tolist()}")
