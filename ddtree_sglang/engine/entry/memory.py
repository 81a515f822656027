"""Releasing memory, new weights and groups for them: refused where it would end the scheduler, or hold it.

SGLang's scheduler asserts that it is idle and that what is resumed was released (managers/scheduler_components/
weight_updater.py), and an assertion ends the server. On the CPU platform there is nothing that could release memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ddtree_sglang.cpu_platform import is_active
from ddtree_sglang.engine.entry.refusals import RequestRefused

RELEASABLE = ("kv_cache", "weights", "cuda_graph")
"""SGLang's names, GPU_MEMORY_ALL_TYPES (constants.py)."""

_released: set[str] = set()


async def check_release(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.release_memory_occupation`.

    Raises:
        RequestRefused: the CPU platform, an unknown tag, or requests that still run.
    """
    tags = _checked_tags(obj)
    if manager.rid_to_state and not manager.is_pause:
        raise RequestRefused(
            f"memory is released by an idle server only, got one with {len(manager.rid_to_state)} requests; wait for "
            "them, or abort them first."
        )
    result = await original(manager, obj, *args)
    _released.update(tags)
    return result


async def check_resume(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.resume_memory_occupation`.

    Raises:
        RequestRefused: the CPU platform, an unknown tag, or one that was not released.
    """
    tags = _checked_tags(obj)
    never = sorted(set(tags) - _released)
    if never:
        raise RequestRefused(f"only memory that was released can be resumed, got {', '.join(never)}; release it first.")
    result = await original(manager, obj, *args)
    _released.difference_update(tags)
    return result


def refuse_groups_on_a_cpu(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on the methods of `TokenizerManager` that connect the scheduler to senders of weights.

    It waits for whatever address it is given, and the CPU platform takes no weights.

    Raises:
        RequestRefused: the CPU platform.
    """
    if is_active():
        raise RequestRefused(
            "a server on the CPU platform takes no new weights, so it joins no group; restart it instead."
        )
    return original(manager, obj, *args)


def check_weights(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.update_weights_from_tensor`: each rank takes the payload of its number.

    Raises:
        RequestRefused: the CPU platform, or another number of payloads than ranks.
    """
    from sglang.srt.runtime_context import get_parallel

    if is_active():
        raise RequestRefused("a server on the CPU platform takes no new weights; restart it instead.")
    given, ranks = len(obj.serialized_named_tensors), int(get_parallel().tp_size)
    if given != ranks:
        raise RequestRefused(
            f"serialized_named_tensors must have one entry for each of {ranks} tensor-parallel ranks, got {given}; "
            "send as many."
        )
    return original(manager, obj, *args)


def _checked_tags(obj: Any) -> tuple[str, ...]:
    if is_active():
        raise RequestRefused("a server on the CPU platform has no memory that it could release; run it on a GPU.")
    tags = tuple(obj.tags or RELEASABLE)
    unknown = [tag for tag in tags if tag not in RELEASABLE]
    if unknown:
        raise RequestRefused(f"tags must be among {', '.join(RELEASABLE)}, got {unknown[0]!r}; leave tags out for all.")
    return tags
