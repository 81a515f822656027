"""The KV pool on a CPU: SGLang's own, without its Triton copy kernel and without touching memory before it is used.

Rows are `[slots, kv_heads, d]` per layer. Addressing, sizing and every other rule stay SGLang's
(`srt/mem_cache/memory_pool.py`); only how the rows are allocated, written and moved differs.
"""

from __future__ import annotations

import math

import numpy
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, move_kv_cache_native


class CpuMHATokenToKVPool(MHATokenToKVPool):  # type: ignore[misc]
    """`MHATokenToKVPool` whose writes and moves are torch index operations."""

    def _create_buffers_normal(self) -> None:
        """Allocate `k_buffer` and `v_buffer`, one `[slots, kv_heads, d]` tensor per layer."""
        key_shape, value_shape = self._kv_buffer_shapes()
        self.k_buffer = [untouched_zeros(key_shape, self.store_dtype) for _ in range(self.layer_num)]
        self.v_buffer = [untouched_zeros(value_shape, self.store_dtype) for _ in range(self.layer_num)]

    def _init_kv_copy_and_warmup(self) -> None:
        """Nothing to tune or warm up: there is no copy kernel."""
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        """Copy rows `src_loc [M]` int64 to `tgt_loc [M]` int64 in every layer; sources are read first."""
        move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)

    def write_rows(self, layer_id: int, loc: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write `keys`, `values [M, kv_heads, d]` to slots `loc [M]` int64 of one layer."""
        self._store_kv_layer(layer_id - self.start_layer, loc, keys, values)

    def _store_kv_layer(self, layer_idx: int, loc: torch.Tensor, cache_k: torch.Tensor, cache_v: torch.Tensor) -> None:
        self.k_buffer[layer_idx].index_copy_(0, loc, cache_k)
        self.v_buffer[layer_idx].index_copy_(0, loc, cache_v)


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that the operating system hands out page by page on first use.

    `torch.zeros` writes every byte, which for a pool of several GiB costs seconds at start and the memory itself.
    """
    flat = numpy.zeros(math.prod(shape) * dtype.itemsize, dtype=numpy.uint8)
    return torch.from_numpy(flat).view(dtype).view(shape)
