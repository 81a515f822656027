"""Groups that send and receive weights: what no group can be made of is refused before a scheduler waits for one.

SGLang's scheduler asserts some of it, which ends the server, and waits for the rest: for ranks that cannot come, or for
tensors of which it has no size (model_runner_components/weight_updater.py, weight_exporter.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import torch

from ddtree_sglang.cpu_platform import is_active
from ddtree_sglang.engine.entry.refusals import RequestRefused

LAST_PORT = 65535


def check_receivers(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.init_weights_update_group`.

    Raises:
        RequestRefused: the CPU platform, or a group that all ranks of this server cannot be in.
    """
    _refuse_on_a_cpu()
    _check_group(obj)
    ranks = _num_ranks()
    if obj.rank_offset < 0 or obj.rank_offset + ranks > obj.world_size:
        raise RequestRefused(
            f"rank_offset and {ranks} tensor-parallel ranks must fit into world_size, got rank_offset "
            f"{obj.rank_offset} and world_size {obj.world_size}."
        )
    _check_port(obj.master_port, "master_port")
    return original(manager, obj, *args)


def check_senders(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on the methods of `TokenizerManager` by which a server sends its weights to another one.

    Raises:
        RequestRefused: the CPU platform, no name, or another number of ports than ranks.
    """
    _refuse_on_a_cpu()
    _check_group(obj)
    ports, ranks = obj.ports.split(","), _num_ranks()
    if len(ports) != ranks:
        raise RequestRefused(f"ports must have one for each of {ranks} tensor-parallel ranks, got {obj.ports!r}.")
    for port in ports:
        _check_port(int(port) if port.strip().isdecimal() else 0, "each of ports")
    return original(manager, obj, *args)


def check_received(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any) -> Any:
    """AROUND hook on `TokenizerManager.update_weights_from_distributed`: a scheduler makes room by what it is told.

    Raises:
        RequestRefused: lists of several lengths, a dtype that torch does not have, a negative size.
    """
    lengths = {len(obj.names), len(obj.dtypes), len(obj.shapes)}
    if len(lengths) != 1:
        raise RequestRefused(
            f"names, dtypes and shapes must be equally many, got {len(obj.names)}, {len(obj.dtypes)} and "
            f"{len(obj.shapes)}."
        )
    for dtype in obj.dtypes:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise RequestRefused(f"dtypes must be torch's, such as bfloat16, got {dtype!r}.")
    for shape in obj.shapes:
        if any(size < 0 for size in shape):
            raise RequestRefused(f"shapes must have no negative size, got {shape}.")
    return original(manager, obj, *args)


def _refuse_on_a_cpu() -> None:
    if is_active():
        raise RequestRefused(
            "a server on the CPU platform takes no new weights, so it joins no group; restart it instead."
        )


def _check_group(obj: Any) -> None:
    if not obj.group_name:
        raise RequestRefused("group_name must not be empty; leave it out for SGLang's own.")
    backend = getattr(obj, "backend", "nccl")
    known = torch.distributed.Backend.backend_list
    # Either one for all devices, or "cpu:gloo,cuda:nccl".
    if any(one.rpartition(":")[2].lower() not in known for one in backend.split(",")):
        raise RequestRefused(f"backend must be among {', '.join(known)}, got {backend!r}.")


def _check_port(port: int, name: str) -> None:
    if not 0 < port <= LAST_PORT:
        raise RequestRefused(f"{name} must be from 1 to {LAST_PORT}, got {port}.")


def _num_ranks() -> int:
    from sglang.srt.runtime_context import get_parallel

    return int(get_parallel().tp_size)
