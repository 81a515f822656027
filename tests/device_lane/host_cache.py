"""SGLang's hierarchical cache in the lane: host memory that nothing pins, and its copies by torch instead of kernels.

Of the copies those of `--hicache-io-backend direct` with `--hicache-mem-layout layer_first`: they are handed tensors,
the others addresses (mem_cache/pool_host/mha.py, mla.py).
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


def install_host_cache() -> None:
    """Host pools are made and filled without CUDA. Twice is as once; before `sgl_kernel` is replaced.

    Raises:
        PinnedNameError: sglang-kernel's copy takes other arguments.
    """
    global _installed
    if _installed:
        return
    _installed = True
    require_signature(package_folder("sgl_kernel") / "kvcacheio.py", "transfer_kv_direct", transfer_kv_direct)
    for pool in ("mha", "mla"):
        on_import(f"sglang.srt.mem_cache.pool_host.{pool}", Patch(_copy_by_torch))
    on_import("sglang.srt.mem_cache.pool_host.base", Patch(_reserve_nothing))


_installed = False


def _reserve_nothing(module: ModuleType) -> None:
    """A pool of kilobytes, on a machine that has less than 10 GiB left."""
    replace(module, "HICACHE_HOST_MEMORY_RESERVE_BYTES", 0)


def _copy_by_torch(module: ModuleType) -> None:
    def allocate(dims: tuple[int, ...], dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return torch.full(dims, torch.nan, dtype=dtype)

    replace(module, "ALLOC_MEMORY_FUNCS", defaultdict(lambda: allocate))
    # CUDA's branch alone imports it.
    module.transfer_kv_direct = transfer_kv_direct  # type: ignore[attr-defined]


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
    for indices in (src_indices, dst_indices):
        pages = indices.view(-1, page_size)
        steps = torch.arange(page_size, dtype=indices.dtype)
        if bool((pages % page_size != steps).any() or (pages - pages[:, :1] != steps).any()):
            raise ValueError(f"rows of whole pages of {page_size} are copied, got {indices.tolist()}")
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.to(target.device)] = source[src_indices.to(source.device)].to(target.device)
