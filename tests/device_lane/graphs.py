"""CUDA graphs as they are: a list of launches with their buffers and frozen host values, run again in order.

A closure that is called again would read the host's values of today. A recording cannot: an integer that was passed
while capturing stays what it was. A read by the host and an index by a mask raise while capturing.

Memory of graphs is shared as SGLang shares it, in one pool. After a replay, only the results of the graph are left. A
replay of an earlier graph may overwrite the results of one that was captured later.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from tests.device_lane.device import Recorder, counts, is_device, mode, storage_of

GARBAGE = {torch.bool: True, torch.uint8: 201, torch.float8_e4m3fn: 300.0}
"""What memory of the pool holds when it may have been used for something else; 3.0e4 for floats, 1 for integers."""


class Graph(Recorder):
    """One capture: nodes to run again, and the memory that they own."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], None]] = []
        self.names: list[str] = []
        self.owned: dict[int, torch.Tensor] = {}  # by storage, what operators allocated while capturing
        self.results: set[int] = set()

    # -- capture ----------------------------------------------------------------------------------------------------

    def operator(self, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """Keep the call with its host values as they are now; a new result is written to the same memory again."""
        args, kwargs = tree_map(_freeze, (args, kwargs))
        inputs = {storage_of(leaf) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        outputs = [leaf for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor)]
        fresh = [storage_of(output) not in inputs for output in outputs]
        for output, is_new in zip(outputs, fresh, strict=True):
            if is_new:
                self.owned[storage_of(output)] = output

        def run() -> None:
            made = tree_iter(func(*args, **kwargs))
            again = [leaf for leaf in map(_finished, made) if isinstance(leaf, torch.Tensor)]
            for kept, new, is_new in zip(outputs, again, fresh, strict=True):
                if is_new:
                    kept.copy_(new)

        self._add(run, func._schema.name)

    def allocation(self, result: torch.Tensor) -> None:
        """Memory of the pool, which a kernel will write."""
        self.owned[storage_of(result)] = result

    def kernel(self, launch: Callable[[], None], name: str) -> None:
        """Keep a launch; its arguments were bound when it ran."""
        self._add(launch, name)

    def host_read(self, what: str) -> None:
        """Refuse, as CUDA does."""
        raise RuntimeError(f"operation not permitted when stream is capturing: the host reads a value ({what})")

    def _add(self, run: Callable[[], None], name: str) -> None:
        self.nodes.append(run)
        self.names.append(name)

    def end(self, result: Any) -> None:
        """Remember which memory holds results."""
        self.results = {storage_of(leaf) for leaf in _tensors_in(result)} & self.owned.keys()

    # -- replay -----------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Run all nodes."""
        counts.replays += 1
        with _disable_current_modes(), torch.inference_mode():
            for run in self.nodes:
                run()

    def spoil(self, results: bool) -> None:
        """Overwrite the memory of the pool that nobody may rely on any more."""
        with _disable_current_modes(), torch.inference_mode():
            for address, tensor in self.owned.items():
                if results or address not in self.results:
                    tensor.fill_(GARBAGE.get(tensor.dtype, 3.0e4 if tensor.is_floating_point() else 1))


def _finished(value: Any) -> Any:
    """A collective's handle is waited for by the caller, whom a replay does not run."""
    if isinstance(value, torch.ScriptObject) and hasattr(value, "wait"):
        value.wait()
    return value


def _freeze(value: Any) -> Any:
    """A host scalar in a tensor is read when a kernel is launched; the rest keeps its place."""
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not is_device(value):
        return value.clone()
    return value


def _tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Tensors of a forward's result: containers and objects with fields."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item, depth + 1)
    elif depth < 4 and hasattr(value, "__dict__"):
        yield from _tensors_in(vars(value), depth + 1)
    elif depth < 4 and hasattr(value, "__struct_fields__"):
        for name in value.__struct_fields__:
            yield from _tensors_in(getattr(value, name), depth + 1)


_captured: list[weakref.ref[Graph]] = []
"""In the order of capture, which decides what a replay may overwrite."""

_capturing = False


def is_capturing() -> bool:
    """Whether a capture is under way."""
    return _capturing


def capture(forward: Callable[[], Any]) -> tuple[Graph, Any]:
    """Run once under the recorder."""
    global _capturing
    graph = Graph()
    mode.recorder, _capturing = graph, True
    try:
        result = forward()
    finally:
        mode.recorder, _capturing = None, False
    graph.end(result)
    _captured.append(weakref.ref(graph))
    return graph, result


def replay(graph: Graph) -> None:
    """Replay one graph of the shared pool."""
    graphs = [one for one in (ref() for ref in _captured) if one is not None]
    for later in graphs[graphs.index(graph) + 1 :]:
        later.spoil(results=True)
    graph.replay()
    graph.spoil(results=False)


def full_graph_backend() -> type:
    """SGLang's interface of a graph backend, one recording per shape (runner_backend/full_cuda_graph_backend.py)."""
    from sglang.srt.model_executor.runner_backend.base_cuda_graph_backend import BaseCudaGraphBackend

    class LaneGraphBackend(BaseCudaGraphBackend):
        """A warm-up and a capture per shape; the CUDA backend warms up twice, for kernels that are measured."""

        def __init__(self, cuda_graph_runner: Any, *, enable_memory_saver: bool = False) -> None:
            self._graphs: dict[Any, Graph] = {}
            self._results: dict[Any, Any] = {}

        @contextmanager
        def capture_session(self, stream: Any) -> Iterator[None]:
            yield

        def capture_one(
            self,
            shape_key: Any,
            forward_fn: Callable[[], Any],
            capture_inputs: Any = None,
            post_warmup_hook: Callable[[], None] | None = None,
        ) -> None:
            forward_fn()
            if post_warmup_hook is not None:
                post_warmup_hook()
            self._graphs[shape_key], self._results[shape_key] = capture(forward_fn)

        def can_run(self, forward_batch: Any, shape_key: Any) -> bool:
            return shape_key in self._graphs

        @contextmanager
        def replay_session(self) -> Iterator[None]:
            yield

        def replay(self, shape_key: Any, static_forward_batch: Any, **kwargs: Any) -> Any:
            replay(self._graphs[shape_key])
            return self._results[shape_key]

        def cleanup(self) -> None:
            self._graphs.clear()
            self._results.clear()

    return LaneGraphBackend
