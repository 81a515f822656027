"""Releasing memory, new weights, groups for them, and sleeping: refused where it would end the scheduler, or hold it.

SGLang's scheduler asserts that it is idle and that what is resumed was released (managers/scheduler_components/
weight_updater.py), and an assertion ends the server. On the CPU platform there is nothing that could release memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ddtree_sglang.cpu_platform import is_active
from ddtree_sglang.engine.entry.refusals import RequestRefused

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import SlowDownReqInput, UpdateWeightFromDiskReqInput

RELEASABLE = ("kv_cache", "weights", "cuda_graph")
"""SGLang's names, GPU_MEMORY_ALL_TYPES (constants.py)."""

LONGEST_SLEEP_S = 3600.0
"""Before a forward, for whoever tests a slow server."""

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
    if never and _hears_of_all():
        raise RequestRefused(f"only memory that was released can be resumed, got {', '.join(never)}; release it first.")
    result = await original(manager, obj, *args)
    _released.difference_update(tags)
    return result


def check_handles(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.update_weights_from_ipc`.

    The scheduler waits for the sockets that it is given, and once more for the drafter: handles are sent once.

    Raises:
        RequestRefused: the CPU platform, or a drafter beside the target.
    """
    from sglang.srt.runtime_context import get_spec

    _refuse_on_a_cpu()
    if get_spec().speculative_algorithm is not None:
        raise RequestRefused(
            "update_weights_from_ipc would load the target's weights into the drafter, too; use "
            "update_weights_from_tensor with selector target."
        )
    return original(manager, obj, *args)


def check_weights(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.update_weights_from_tensor`: each rank takes the payload of its number.

    Raises:
        RequestRefused: the CPU platform, or another number of payloads than ranks.
    """
    from sglang.srt.runtime_context import get_parallel

    _refuse_on_a_cpu()
    given, ranks = len(obj.serialized_named_tensors), int(get_parallel().tp_size)
    if given != ranks:
        raise RequestRefused(
            f"serialized_named_tensors must have one entry for each of {ranks} tensor-parallel ranks, got {given}; "
            "send as many."
        )
    return original(manager, obj, *args)


def check_checkpoint(
    original: Callable[..., Awaitable[Any]], manager: Any, obj: UpdateWeightFromDiskReqInput, *args: Any
) -> Any:
    """AROUND hook on `TokenizerManager.update_weights_from_disk`: what cannot be loaded rightly is not begun.

    SGLang loads the one checkpoint into every model that it runs, a drafter too (managers/scheduler_components/
    weight_updater.py).

    Raises:
        RequestRefused: the CPU platform, a drafter beside the target, or a format that SGLang does not know.
    """
    from sglang.srt.configs.load_config import LoadFormat
    from sglang.srt.runtime_context import get_spec

    _refuse_on_a_cpu()
    if get_spec().speculative_algorithm is not None:
        raise RequestRefused(
            "update_weights_from_disk would load the target's checkpoint into the drafter, too; restart the server, or "
            "use update_weights_from_tensor with selector target."
        )
    formats = [one.value for one in LoadFormat]
    if obj.load_format is not None and obj.load_format.lower() not in formats:
        raise RequestRefused(f"load_format must be among {', '.join(formats)}, got {obj.load_format!r}.")
    return original(manager, obj, *args)


def check_sleep(original: Callable[..., Awaitable[Any]], manager: Any, obj: SlowDownReqInput, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.slow_down`: the scheduler ends over a time that it cannot sleep.

    Raises:
        RequestRefused: not a number, or longer than an hour.
    """
    seconds = obj.forward_sleep_time
    if seconds is not None and not seconds <= LONGEST_SLEEP_S:
        raise RequestRefused(
            f"forward_sleep_time must be at most {LONGEST_SLEEP_S:.0f} s, got {seconds}; 0 ends the sleeping."
        )
    return original(manager, obj, *args)


def _hears_of_all() -> bool:
    """Whether no other process tokenizes, so that what was released was released through this one."""
    from sglang.srt.runtime_context import get_serving

    return int(get_serving().tokenizer_worker_num) == 1


def _checked_tags(obj: Any) -> tuple[str, ...]:
    if is_active():
        raise RequestRefused("a server on the CPU platform has no memory that it could release; run it on a GPU.")
    tags = tuple(obj.tags or RELEASABLE)
    unknown = [tag for tag in tags if tag not in RELEASABLE]
    if unknown:
        raise RequestRefused(f"tags must be among {', '.join(RELEASABLE)}, got {unknown[0]!r}; leave tags out for all.")
    return tags


def _refuse_on_a_cpu() -> None:
    if is_active():
        raise RequestRefused("a server on the CPU platform takes no new weights; restart it instead.")
