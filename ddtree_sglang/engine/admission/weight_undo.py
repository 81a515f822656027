"""What an update writes into a model, kept as it was before the first write, so that a failed update is taken back.

Loaders of weights write in place, by operators of torch (`param.data.copy_`), now and then from threads of their own.
While an update is watched, each operator that writes into a storage of the model saves that storage first, whole. So an
update costs a copy of what it writes, on the device while there is room, and nothing of what it leaves alone. What
loaders bind anew (parameters that are repacked, attributes of modules) is held by reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KEPT_FREE_BYTES = 1 << 30
"""Of a device's memory, for what the loader itself needs; copies that would take of it go to the host."""

_watched: ContextVar[UndoLog | None] = ContextVar("the log of the update that loads now", default=None)


@dataclass
class UndoLog:
    """The models of one update, with their storages as they were.

    Attributes:
        models: what may be written.
        room_bytes: device memory that copies may take.
        writes: writes into the models' storages so far.
    """

    models: Sequence[torch.nn.Module]
    room_bytes: int = 0
    writes: int = 0
    _storages: dict[int, torch.Tensor] = field(default_factory=dict)  # by address, one tensor on each
    _saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # bytes, and what they were
    _bindings: list[Callable[[], None]] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Note which storages are the models', and what is bound where."""
        self._is_plain = all(getattr(model, "quant_config", None) is None for model in self.models)
        for model in self.models:
            for module in model.modules():
                self._note_module(module)

    def before_write(self, tensor: torch.Tensor) -> None:
        """Save the storage of a tensor that is about to be written, if it is of a model and was not saved before."""
        address = _address(tensor)
        with self._lock:
            held = self._storages.get(address)
            if held is None:
                return
            self.writes += 1
            if address not in self._saved:
                content = _bytes_of(held)
                self._saved[address] = content, self._copy(content)

    def check_kind(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Raise TypeError for numbers of another kind than the weight's, which torch would convert without a word.

        Plain weights alone: a quantized model unpacks and repacks.
        """
        if self._is_plain and _address(target) in self._storages and _kind(target) != _kind(source):
            raise TypeError(f"weights of {source.dtype} cannot be loaded into {target.dtype}")

    def unwritten(self, model: torch.nn.Module) -> list[str]:
        """Parameters of a plain model of whose storage nothing was written, by name."""
        if not self._is_plain:
            return []
        return [
            name
            for name, parameter in model.named_parameters()
            if _address(parameter) in self._storages and _address(parameter) not in self._saved
        ]

    def roll_back(self) -> None:
        """Make all that was written and bound what it was."""
        for content, before in self._saved.values():
            content.copy_(before)
        for bind in self._bindings:
            bind()
        self.forget()

    def forget(self) -> None:
        """Give the copies' memory back, to other users of a device as well; the log can undo nothing from now on."""
        devices = {before.device for _, before in self._saved.values()}
        self._saved.clear()
        self._bindings.clear()
        for device in devices:
            give_back = getattr(torch.get_device_module(device), "empty_cache", None)
            if give_back is not None:
                give_back()

    def _copy(self, content: torch.Tensor) -> torch.Tensor:
        if content.numel() > self.room_bytes:
            return content.cpu() if content.device.type != "cpu" else content.clone()
        try:
            copy = content.clone()
        except torch.OutOfMemoryError:
            # What was sent came after the room was measured.
            self.room_bytes = 0
            return content.to("cpu", copy=True)
        self.room_bytes -= content.numel()
        return copy

    def _note_module(self, module: torch.nn.Module) -> None:
        tables = [module.__dict__, module._parameters, module._buffers, module._modules]
        self._bindings += [_binding(table) for table in tables]
        for tensor in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(tensor, torch.Tensor):
                self._bindings.append(_data_binding(tensor))
                if _address(tensor):
                    self._storages.setdefault(_address(tensor), tensor.detach())


class _Watch(TorchDispatchMode):
    """Saves what an operator is about to write, in the thread that entered it."""

    def __init__(self, log: UndoLog) -> None:
        super().__init__()
        self._log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.copy_.default:
            self._log.check_kind(args[0], args[1])
        for tensor in _written(func, args, kwargs):
            self._log.before_write(tensor)
        return func(*args, **kwargs)


@contextmanager
def watching(log: UndoLog) -> Iterator[None]:
    """While it lasts, writes into the log's models are saved first, from threads that are given work meanwhile, too."""
    token = _watched.set(log)
    try:
        with _Watch(log):
            yield
    finally:
        _watched.reset(token)


def watch_threads(
    original: Callable[..., Any], executor: Any, work: Callable[..., Any], /, *args: Any, **kw: Any
) -> Any:
    """AROUND hook on `ThreadPoolExecutor.submit`: what a loader hands to a thread is watched there.

    A mode of torch's dispatcher ends at its thread; loaders of experts copy in several.
    """
    log = _watched.get()
    if log is None:
        return original(executor, work, *args, **kw)

    def watched(*its: Any, **named: Any) -> Any:
        with _Watch(log):
            return work(*its, **named)

    return original(executor, watched, *args, **kw)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterable[torch.Tensor]:
    """The tensors that an operator writes; of one that is not torch's own, all that it is given."""
    if func.namespace not in ("aten", "prims"):
        yield from _tensors((*args, *kwargs.values()))
        return
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors((args[place] if place < len(args) else kwargs.get(argument.name),))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _address(tensor: torch.Tensor) -> int:
    """Of its storage; 0 for one without memory."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):
        return 0


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All of its storage, uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float" if tensor.itemsize > 1 else "float8"
    return "bool" if tensor.dtype == torch.bool else "integer"


def _binding(table: dict[str, Any]) -> Callable[[], None]:
    """What makes a dictionary hold again what it holds now."""
    held = dict(table)

    def bind() -> None:
        table.clear()
        table.update(held)

    return bind


def _data_binding(tensor: torch.Tensor) -> Callable[[], None]:
    """What makes a tensor be on its memory again, with its attributes."""
    data, attributes = tensor.data, dict(tensor.__dict__)

    def bind() -> None:
        if _place(data) != _place(tensor):
            tensor.data = data
        tensor.__dict__.clear()
        tensor.__dict__.update(attributes)

    return bind
