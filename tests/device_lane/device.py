"""Device tensors: host tensors with a mark, which every operator hands on.

The mark makes a tensor say `cpu:0` where a host tensor says `cpu`, so what the engine asks of a device has the answers
of a GPU. It also makes countable what costs time there: launches, copies between host and device, reads by the host.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tests.device_lane import streams
from tests.device_lane.doors import inside_door

DEVICE = torch.device("cpu", 0)
HOST = torch.device("cpu")

_MARK = "_lane_device"
_HOST_READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"})
_SIZED_BY_VALUES = frozenset({"aten::_unique2", "aten::unique_consecutive", "aten::unique_dim", "aten::bincount"})
"""Kernels whose results are as long as the values say: the host waits to allocate them, as for a mask's true cells."""
_ALLOCATIONS = frozenset(
    {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
)

Operator = Callable[..., Any]


@dataclass
class Counts:
    """What a stretch of work costs on a device, from its first operator on."""

    launches: Counter[str] = field(default_factory=Counter)  # by operator or kernel, outside graph replays
    host_reads: Counter[str] = field(default_factory=Counter)  # values that the host waited for
    copies: Counter[str] = field(default_factory=Counter)  # "to device", "to host"
    new_variants: Counter[str] = field(default_factory=Counter)  # kernels with compile-time values not seen before
    allocated_bytes: int = 0  # by operators, outside graphs
    replays: int = 0

    def take(self) -> Counts:
        """What was counted so far; counting starts anew."""
        taken = Counts(**vars(self))
        self.__init__()  # type: ignore[misc]
        return taken


counts = Counts()


def is_device(tensor: Any) -> bool:
    """Whether a tensor is the device's."""
    return getattr(tensor, _MARK, False)


def mark(tensor: torch.Tensor) -> torch.Tensor:
    """Make a tensor the device's; it stays where it is."""
    setattr(tensor, _MARK, True)
    return tensor


def is_device_place(place: Any) -> bool:
    """Whether a `device` argument means the device; an index tells, as the host has none."""
    if place is None or isinstance(place, int):
        return False
    return torch.device(place).index is not None


def _is_device_work(tensors: list[torch.Tensor], place: Any) -> bool:
    """Whether an operator runs on the device: where it is told to, else where its tensors are."""
    return any(map(is_device, tensors)) if place is None else is_device_place(place)


class Recorder:
    """What a graph capture installs to see all that is launched."""

    def operator(self, func: Operator, args: Any, kwargs: Any, result: Any) -> None:
        """Called after an operator ran."""

    def allocation(self, result: torch.Tensor) -> None:
        """Called after memory was allocated that no operator wrote."""

    def kernel(self, launch: Callable[[], None], name: str) -> None:
        """Called after a kernel ran; `launch()` runs it again."""

    def host_read(self, what: str) -> None:
        """Called before the host reads a value."""


class DeviceMode(TorchDispatchMode):
    """Sees every operator of the process: marks results, counts launches, feeds a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.recorder: Recorder | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "aten::copy_" and is_device(args[0]) != is_device(args[1]):
            return self._copy_across(*args, **kwargs)
        if not _is_device_work(tensors, kwargs.get("device")):
            return func(*args, **kwargs)
        if self._reads(name, args, kwargs):
            self.host_read(name)
        result = func(*args, **kwargs)
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                mark(leaf)
        self._count(func, args, kwargs, result, tensors)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any, inputs: list[torch.Tensor]) -> None:
        name = func._schema.name
        works = is_launch(func, result, inputs)
        if works:
            counts.launches[name] += 1
        if works or name in _ALLOCATIONS:
            counts.allocated_bytes += allocated_bytes(result, inputs)
        if self.recorder is not None and works:
            self.recorder.operator(func, args, kwargs, result)
        elif self.recorder is not None and name in _ALLOCATIONS:
            self.recorder.allocation(result)

    def _copy_across(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """A copy between host and device; the host waits for one to it, unless it says that it does not."""
        if is_device(target):
            counts.copies["to device"] += 1
            if self.recorder is not None and source.numel() > 1:
                self.recorder.host_read("copy from the host")
            target.copy_(source)
            if self.recorder is not None and source.numel():
                # One value, such as that of `x[0] = 5`, is filled in: again at each replay, as it is now.
                self.recorder.operator(torch.ops.aten.copy_.default, (target, source.clone()), {}, target)
            return target
        counts.copies["to host"] += 1
        if not non_blocking:
            self.host_read("copy to host")
        return streams.copy_to_host(source, target, non_blocking)

    def host_read(self, what: str) -> None:
        """The host waits for a value of the device; what the inside of a kernel reads is no wait."""
        if inside_door():
            return
        counts.host_reads[f"{what}, {_caller()}"] += 1
        if self.recorder is not None:
            self.recorder.host_read(what)

    @staticmethod
    def _reads(name: str, args: Any, kwargs: Any) -> bool:
        if name in _HOST_READS or name in _SIZED_BY_VALUES:
            return True
        if name == "aten::repeat_interleave":  # of a tensor of counts, whose sum nobody said
            return kwargs.get("output_size") is None and isinstance(args[min(1, len(args) - 1)], torch.Tensor)
        if name not in ("aten::index", "aten::index_put_"):
            return False
        if name == "aten::index_put_" and args[2].numel() == 1 and not is_device(args[2]):
            return False  # one value of the host for all cells of a mask is filled in without looking for them
        # An index by a mask looks for its true cells, and the size of the result is known on the host.
        masks = (torch.bool, torch.uint8)
        return any(isinstance(one, torch.Tensor) and one.dtype in masks for one in tree_iter(args[1]))


def _caller() -> str:
    """File and line of the first frame that is neither torch's nor the lane's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in ("/torch/", "device_lane")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


mode = DeviceMode()


def storage_of(tensor: torch.Tensor) -> int:
    """Address that all views of a tensor share."""
    return int(tensor.untyped_storage().data_ptr())


def is_launch(func: Any, result: Any, inputs: list[torch.Tensor]) -> bool:
    """Whether an operator does work on the device; views and allocations do not."""
    if func.namespace == "c10d":
        return True  # collectives write their arguments without saying so in their schemas
    if func._schema.name in _ALLOCATIONS or func._schema.name in _HOST_READS - {"aten::nonzero"}:
        return False
    outputs = [leaf for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor)]
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
        return any(output.numel() for output in outputs) or not outputs
    held = {storage_of(tensor) for tensor in inputs}
    return any(storage_of(output) not in held and output.numel() for output in outputs)


def allocated_bytes(result: Any, inputs: list[torch.Tensor]) -> int:
    """Bytes of new storage that an operator's results hold."""
    held = {storage_of(tensor) for tensor in inputs}
    new = {
        storage_of(leaf): leaf.untyped_storage().nbytes()
        for leaf in tree_iter(result)
        if isinstance(leaf, torch.Tensor)
    }
    return sum(size for address, size in new.items() if address not in held)
