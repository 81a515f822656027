"""Tensor methods that know the device: where a tensor is, moves between host and device, reads by the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.device_lane import streams
from tests.device_lane.device import DEVICE, HOST, counts, is_device, is_device_place, mark, mode

_to = torch.Tensor.to
_READERS = ("tolist", "numpy", "__array__")


def _place(tensor: torch.Tensor) -> torch.device:
    return DEVICE if is_device(tensor) else HOST


def to_host(tensor: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """A copy in host memory."""
    if not non_blocking:
        mode.host_read("copy to host")
        streams.arrive()
    counts.copies["to host"] += 1
    with _disable_current_modes():
        return streams.copy_to_host(tensor, torch.empty_like(tensor, device="cpu"), non_blocking)


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in device memory."""
    _count_copy_to_device()
    with _disable_current_modes():
        return mark(tensor.clone())


def _count_copy_to_device() -> None:
    """A capture permits none from ordinary memory."""
    counts.copies["to device"] += 1
    if mode.recorder is not None:
        mode.recorder.host_read("copy to the device")


def move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`."""
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
    copy = bool(kwargs.get("copy", False)) or (len(args) > 3 and bool(args[3]))
    there = is_device(tensor) if device is None else is_device_place(device)
    if there != is_device(tensor):
        tensor, copy = to_device(tensor) if there else to_host(tensor, bool(non_blocking)), False
    return _to(tensor, dtype or tensor.dtype, copy=copy)


def _counting(reader: str) -> Any:
    original = getattr(torch.Tensor, reader)

    def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_device(tensor):
            mode.host_read(reader)
            streams.arrive()
        return original(tensor, *args, **kwargs)

    return read


def _made_of_data(maker: Any) -> Any:
    """`torch.tensor` and its like, which copy what they made to the device without an operator."""

    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = maker(*args, **kwargs)
        if is_device_place(kwargs.get("device")) and not is_device(made):
            _count_copy_to_device()
            mark(made)
        return made

    return make


def install() -> None:
    """Put these in place of torch's own, for this process."""
    tensor = torch.Tensor
    tensor.device = property(_place)  # type: ignore[assignment,method-assign]
    tensor.to = move  # type: ignore[assignment,method-assign]
    tensor.cpu = lambda one, *_, **__: move(one, HOST)  # type: ignore[assignment,method-assign]
    tensor.record_stream = lambda one, stream: None  # type: ignore[assignment,method-assign]
    tensor.pin_memory = lambda one, *_, **__: one.clone()  # type: ignore[assignment,method-assign]
    for reader in _READERS:
        setattr(tensor, reader, _counting(reader))
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _made_of_data(getattr(torch, name)))
