"""On a decoding server, the drafter's keys of a retracted request: copied to the host beside the target's, and back.

SGLang keeps a retracted request's keys there in one of two ways. Its pool on the host has the drafter's, too. Tensors
of each request have the target's alone (managers/schedule_batch.py, `Req.offload_kv_cache`): it chooses them where the
target has latent attention, or requests have priorities (mem_cache/kv_cache_builder.py). The request goes on in other
slots, which hold what their last owner's drafter wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req

_pools: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""By the allocator of slots, the drafter's pool, whose rows have the same numbers; empty under another algorithm."""
_copies: WeakKeyDictionary[Req, Any] = WeakKeyDictionary()
"""By request, as long as it waits; one that is aborted meanwhile takes its copy with it."""


def copy_beside_the_targets(allocator: Any, draft_pool: Any) -> None:
    """From now on, requests whose slots are this allocator's take the drafter's keys along."""
    _pools[allocator] = draft_pool


def copy_drafter_keys(original: Callable[..., None], req: Req, req_to_token_pool: Any, allocator: Any) -> None:
    """AROUND hook on `Req.offload_kv_cache`, which is called before the slots are given back."""
    original(req, req_to_token_pool, allocator)
    if (pool := _pools.get(allocator)) is not None:
        _copies[req] = pool.get_cpu_copy(_slots(req, req_to_token_pool))


def restore_drafter_keys(original: Callable[..., None], req: Req, req_to_token_pool: Any, allocator: Any) -> None:
    """AROUND hook on `Req.load_kv_cache`, which is called once the request has slots again."""
    original(req, req_to_token_pool, allocator)
    if (pool := _pools.get(allocator)) is not None:
        pool.load_cpu_copy(_copies.pop(req), _slots(req, req_to_token_pool))


def _slots(req: Req, req_to_token_pool: Any) -> torch.Tensor:
    """`[seqlen - 1]`, of all tokens but the last, whose keys are the next round's to write."""
    slots: torch.Tensor = req_to_token_pool.req_to_token[req.kv.req_pool_idx, : req.seqlen - 1]
    return slots
