"""The KV pool on a CPU: SGLang's own, without its Triton copy kernel.

Rows are ``[slot, kv_head, head_dim]`` per layer. Addressing, sizing and every other rule stay SGLang's
(``srt/mem_cache/memory_pool.py``); only how rows are written and moved differs.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, move_kv_cache_native


class CpuMHATokenToKVPool(MHATokenToKVPool):
    """``MHATokenToKVPool`` whose writes and moves are torch index operations."""

    def _init_kv_copy_and_warmup(self) -> None:
        """Nothing to tune or warm up: there is no copy kernel."""
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        """Copy rows ``src_loc [M] int64`` to ``tgt_loc [M] int64`` in every layer; sources are read first."""
        move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)

    def write_rows(self, layer_id: int, loc: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write ``keys``, ``values`` ``[M, kv_heads, head_dim]`` to slots ``loc [M] int64`` of one layer."""
        index = layer_id - self.start_layer
        self.k_buffer[index].index_copy_(0, loc, keys)
        self.v_buffer[index].index_copy_(0, loc, values)

    def _store_kv_layer(self, layer_idx: int, loc: Any, cache_k: torch.Tensor, cache_v: torch.Tensor) -> None:
        self.k_buffer[layer_idx].index_copy_(0, loc, cache_k)
        self.v_buffer[layer_idx].index_copy_(0, loc, cache_v)
