"""Accepted rows become final: they move to the front of each request's window in the target's KV pool.

The platform and the pool choose how when the server starts. `HostMover` lets the pool move the rows that move. On a
device, `KernelMover` moves the rows of SGLang's plain pool: one launch for all layers, right for any path. A model with
sliding windows has two such pools, and `WindowedMover` one launch for each. `PoolMover`, for every other pool on a
device, lets the pool move all rows of the paths.

SGLang's own launch (kernels/ops/kvcache/cache_move.py) loads and stores bytes without a barrier between the two. It is
right for a slot that is both source and target because Triton lays out its tiles with each byte column in one thread;
tests/benchmarks/test_engine_kv_move.py compiles it and looks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.kv_commit import commit_plan
from ddtree_sglang.engine.device_path import is_device_path

if TYPE_CHECKING:
    from ddtree_sglang.kernels.kv_move_triton import KVRows


class KVMover(ABC):
    """Moves rows of one KV pool."""

    @abstractmethod
    def move(self, slots: torch.Tensor, accepted: AcceptedPath) -> None:
        """Make the rows of the accepted paths final; `slots [B, N]` int64 are those of the nodes."""

    @abstractmethod
    def warm_up(self, max_path_len: int) -> None:
        """Compile what paths of at most so many nodes need, so that no round waits for it."""


@dataclass(frozen=True)
class KVMoves:
    """M rows of the KV pool to copy, all read before any is written."""

    sources: torch.Tensor  # [M] int64, slots
    targets: torch.Tensor  # [M] int64, slots


def committed_moves(slots: torch.Tensor, accepted: AcceptedPath) -> KVMoves:
    """The moves of `core.kv_commit.commit_plan` among the nodes' `slots [B, N]` int64: M = B * P, no-ops included."""
    plan = commit_plan(accepted)
    return KVMoves(slots.gather(1, plan.source_slots).flatten(), slots.gather(1, plan.target_slots).flatten())


@dataclass(frozen=True)
class HostMover(KVMover):
    """Rows in the host's memory, where reading a value costs nothing."""

    pool: Any

    def move(self, slots: torch.Tensor, accepted: AcceptedPath) -> None:
        """Move rows that move: most stay where they are, and finding those that do not costs less than copying all."""
        every = committed_moves(slots, accepted)
        moved = every.sources != every.targets
        if bool(moved.any()):
            self.pool.move_kv_cache(every.targets[moved], every.sources[moved])

    def warm_up(self, max_path_len: int) -> None:
        """Nothing is compiled on the host."""


@dataclass(frozen=True)
class PoolMover(KVMover):
    """Rows of a pool of any layout on a device: latent keys, pages with heads first, scales beside the rows."""

    pool: Any

    def move(self, slots: torch.Tensor, accepted: AcceptedPath) -> None:
        """Move all rows of the paths, those that stay included: which of them move is not known to the host."""
        if slots.shape[1] > 1:
            every = committed_moves(slots, accepted)
            self.pool.move_kv_cache(every.targets, every.sources)

    def warm_up(self, max_path_len: int) -> None:
        """The pool compiles its own move, anew for each power of two of rows."""


@dataclass(frozen=True)
class KernelMover(KVMover):
    """Rows of a pool that has keys and values in one contiguous tensor each per layer, and nothing beside them."""

    rows: KVRows

    def move(self, slots: torch.Tensor, accepted: AcceptedPath) -> None:
        """Move what moves in one launch; neither a plan nor a list of slots is made."""
        from ddtree_sglang.kernels.kv_move_triton import move_accepted_rows

        move_accepted_rows(self.rows, slots, accepted.accept_index)

    def warm_up(self, max_path_len: int) -> None:
        """Launch it on a path without nodes, which moves nothing."""
        from ddtree_sglang.kernels.kv_move_triton import move_accepted_rows

        nowhere = torch.full((1, max_path_len), -1, dtype=torch.int64, device=self.rows.data_ptrs.device)
        move_accepted_rows(self.rows, nowhere, nowhere)


@dataclass(frozen=True)
class WindowedMover(KVMover):
    """Rows of a pool for the layers that attend to everything, and of one for those with a sliding window."""

    full: KernelMover
    sliding: KernelMover
    translate: Callable[[torch.Tensor], torch.Tensor]  # slots of the first to slots of the second, int64 to int64

    def move(self, slots: torch.Tensor, accepted: AcceptedPath) -> None:
        """Move what moves in both."""
        if slots.shape[1] > 1:
            self.full.move(slots, accepted)
            self.sliding.move(self.translate(slots), accepted)

    def warm_up(self, max_path_len: int) -> None:
        """Rows of the two may differ in size."""
        self.full.warm_up(max_path_len)
        self.sliding.warm_up(max_path_len)


def make_mover(pool: Any) -> KVMover:
    """The way for the platform that serves and the target's pool, whose buffers exist by now."""
    if not is_device_path():
        return HostMover(pool)
    pool = attending_pool(pool)
    if has_plain_rows(pool):
        return _kernel_mover(pool)
    return _windowed_mover(pool) or PoolMover(pool)


def attending_pool(hybrid_pool: Any) -> Any:
    """Of a target some of whose layers keep a recurrent state, the pool of those that attend; slots are the same."""
    from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool

    return hybrid_pool.full_kv_pool if type(hybrid_pool) is HybridLinearKVPool else hybrid_pool


def _kernel_mover(pool: Any) -> KernelMover:
    from ddtree_sglang.kernels.kv_move_triton import KVRows

    return KernelMover(KVRows.of([*pool.k_buffer, *pool.v_buffer]))


def _windowed_mover(pools: Any) -> WindowedMover | None:
    """For SGLang's pair of pools for sliding windows (mem_cache/swa_memory_pool.py), if both are plain."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    if type(pools) is not SWAKVPool or not (has_plain_rows(pools.full_kv_pool) and has_plain_rows(pools.swa_kv_pool)):
        return None
    return WindowedMover(
        _kernel_mover(pools.full_kv_pool), _kernel_mover(pools.swa_kv_pool), pools.translate_loc_from_full_to_swa
    )


def has_plain_rows(pool: Any) -> bool:
    """Whether row s of each key and value buffer is all that slot s has.

    A subclass may keep more per slot or translate slots, so it is asked for the very class (mem_cache/memory_pool.py):
    of it, pages with heads first, quantized rows with scales, and a pool without layers are left out as well.
    """
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    return (
        type(pool) is MHATokenToKVPool
        and pool.kv_cache_layout == "nhd"
        and not pool.is_quantized_kv_cache
        and not pool.use_native_move_kv_cache
        and pool.layer_num > 0
    )
