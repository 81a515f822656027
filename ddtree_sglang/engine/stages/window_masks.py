"""Sliding windows of a tree verify on SGLang's Triton backend, placed by each node's position.

Its kernel (kernels/ops/attention/extend_attention.py) cuts a window by the row of a query among the new tokens, which
in a tree is a node's index, not its depth: nodes behind the first of a depth would lose keys at the far end of their
windows. The kernel reads a mask over prefix and tree as well, and without a window it reads it row by row. So layers
with a window get a mask of their own, `core.window_mask`, and no window. What they read of the prefix, the last tokens
that one window can hold (triton_backend.py, `update_sliding_window_buffer`), is what that mask covers.

Deterministic inference has a kernel of its own, which reads prefix and nodes as one list of keys, takes a mask over
those, and cuts a window by a node's index beside it. It gets the same mask, and no window.

Outside a graph the mask is made anew for each forward. A graph makes it at its start, in a buffer of its backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ddtree_sglang.core.window_mask import WindowMask
from ddtree_sglang.engine.stages.trees import verifying_backend

_MASK, _STARTS = 9, 11
"""Among the positional arguments of `extend_attention_fwd`: `custom_mask` and `mask_indptr`."""


@dataclass(frozen=True, slots=True)
class _OfForward:
    """The mask that belongs to a backend's metadata of one forward, or of one graph."""

    metadata: Any
    mask: WindowMask


_of_forward: WeakKeyDictionary[Any, _OfForward] = WeakKeyDictionary()
_of_graphs: WeakKeyDictionary[Any, WindowMask] = WeakKeyDictionary()
"""By backend: what its next layers attend with, and the buffer that all its graphs share."""


def window_of_masks(runner: Any) -> int | None:
    """The target's window, if it has any and verifies with Triton, else None; its backend is built by now."""
    if not runner.sliding_window_size:
        return None
    # By name, as in admission/target_checks.py.
    is_triton = type(verifying_backend(runner.attn_backend)).__name__ == "TritonAttnBackend"
    return int(runner.sliding_window_size) if is_triton else None


def making_masks(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """In the place of `TritonAttnBackend.init_forward_metadata`, which forwards outside graphs begin with."""

    @wraps(original)
    def init_forward_metadata(backend: Any, forward_batch: Any) -> None:
        original(backend, forward_batch)
        if _has_tree(backend, forward_batch):
            metadata, batch_size = backend.forward_metadata, forward_batch.batch_size
            sizes = batch_size, metadata.max_extend_len, backend.sliding_window_size
            _of_forward[backend] = _OfForward(metadata, WindowMask.empty(*sizes, forward_batch.seq_lens.device))
            fill_window_mask(backend, forward_batch)

    return init_forward_metadata


def keeping_masks_of_graphs(original: Callable[..., None]) -> Callable[..., None]:
    """In the place of `TritonAttnBackend.init_forward_metadata_out_graph`, which comes before each capture."""

    @wraps(original)
    def init_forward_metadata_out_graph(backend: Any, forward_batch: Any, in_capture: bool = False) -> None:
        original(backend, forward_batch, in_capture)
        if in_capture and _has_tree(backend, forward_batch):
            metadata, held = backend.forward_metadata, backend.verify_mask
            if backend not in _of_graphs:
                sizes = int(held.max_bs), metadata.max_extend_len, backend.sliding_window_size
                _of_graphs[backend] = WindowMask.empty(*sizes, held.buffer.device)
            _of_forward[backend] = _OfForward(metadata, _of_graphs[backend])

    return init_forward_metadata_out_graph


def _has_tree(backend: Any, forward_batch: Any) -> bool:
    return forward_batch.forward_mode.is_target_verify() and backend.forward_metadata.custom_mask is not None


def fill_window_mask(attn_backend: Any, forward_batch: Any) -> None:
    """Make the windows' mask from the tree's, in one launch; nothing for a backend that has no such mask.

    A graph's forward begins with it, and so does its recording.
    """
    from ddtree_sglang.kernels.window_mask_triton import window_mask_into

    backend = verifying_backend(attn_backend)
    mask = _mask_of(backend)
    if mask is not None:
        metadata = backend.forward_metadata
        flat = metadata.custom_mask.view(torch.uint8)
        lens = forward_batch.seq_lens[: forward_batch.batch_size]
        window_mask_into(mask, flat, lens, metadata.max_extend_len, backend.sliding_window_size)


def _mask_of(backend: Any) -> WindowMask | None:
    """None for the metadata of another forward: a prefill, a draft block, a chain."""
    try:
        found = _of_forward.get(backend)
    except TypeError:  # a backend that cannot be referred to weakly is none of Triton's
        return None
    return found.mask if found is not None and found.metadata is backend.forward_metadata else None


def attending_by_position(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `TritonAttnBackend._forward_extend_kernel`: a tree's window is in the mask alone."""

    @wraps(original)
    def _forward_extend_kernel(backend: Any, layer: Any, *tensors: Any, **options: Any) -> Any:
        mask = _mask_of(backend)
        if mask is None or options["sliding_window_size"] < 0:
            return original(backend, layer, *tensors, **options)
        changed = list(tensors)
        changed[_MASK], changed[_STARTS] = mask.cells.view(torch.uint8), mask.starts
        options |= {"sliding_window_size": -1, "window_kv_offsets": None, "skip_prefix_custom_mask": False}
        return original(backend, layer, *changed, **options)

    return _forward_extend_kernel


def attending_by_position_in_one_go(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `TritonAttnBackend._forward_extend_unified`: the same under deterministic inference."""

    @wraps(original)
    def _forward_extend_unified(backend: Any, q: Any, o: Any, layer: Any, *others: Any, **options: Any) -> Any:
        mask = _mask_of(backend)
        if mask is None or layer.sliding_window_size is None or layer.sliding_window_size < 0:
            return original(backend, q, o, layer, *others, **options)
        kernel = backend.extend_attention_fwd_unified
        backend.extend_attention_fwd_unified = partial(_by_mask, kernel, mask)
        try:
            return original(backend, q, o, layer, *others, **options)
        finally:
            backend.extend_attention_fwd_unified = kernel

    return _forward_extend_unified


def _by_mask(kernel: Callable[..., None], mask: WindowMask, *tensors: Any, **options: Any) -> None:
    """In the place of `extend_attention_fwd_unified`, while a layer with a window attends to a tree."""
    own = {"custom_mask": mask.cells.view(torch.uint8), "mask_indptr": mask.starts}
    kernel(*tensors, **options | own | {"sliding_window_size": -1, "window_start_pos": None})
