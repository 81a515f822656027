"""Sliding windows of a tree verify on SGLang's FlashInfer backend, placed by each node's position.

Layers with a window have a wrapper of their own there, whose keys SGLang cuts to the last tokens that one window can
hold. For a tree it forgets where these begin, lays the mask of all keys over them, and hands the run a window that its
plan does not know (layers/attention/flashinfer_backend.py, `update_sliding_window`, `forward_extend`). One that it knew
would not do: FlashInfer's kernel cuts it from a mask by the row of a query among the nodes, which in a tree is a node's
index, not its depth (flashinfer/data/include/flashinfer/attention/variants.cuh). So the wrapper is planned with the
keys from where they begin, with a mask of its own, `core.window_mask`, and runs without a window. A chain of one node
sees all of those keys, and has no mask.

Captured graphs of all layers share one buffer of masks, which the wrapper without a window writes last. It is divided.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from sglang.srt.speculative.dflash_info import DFlashVerifyInput

from ddtree_sglang.core.window_mask import WindowMask
from ddtree_sglang.engine.stages.trees import verifying_backend
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput


def window_of_wrapper(runner: Any) -> int | None:
    """The target's window, if it has any and verifies with FlashInfer, else None; its backend is built by now."""
    if not runner.sliding_window_size:
        return None
    # By name, as in admission/target_checks.py.
    is_flashinfer = type(verifying_backend(runner.attn_backend)).__name__ == "FlashInferAttnBackend"
    return int(runner.sliding_window_size) if is_flashinfer else None


def planning_by_position(original: Callable[..., None]) -> Callable[..., None]:
    """In the place of `FlashInferIndicesUpdaterPrefill.call_begin_forward`, which plans a wrapper for a forward.

    Once for each wrapper of a verify, eager, before a capture and before each replay.
    """
    signature = inspect.signature(original)

    @wraps(original)
    def call_begin_forward(updater: Any, *arguments: Any, **named: Any) -> None:
        call = signature.bind(updater, *arguments, **named)
        tree, wrapper = call.arguments["spec_info"], call.arguments["wrapper_paged"]
        if isinstance(tree, DDTreeVerifyInput) and call.arguments["kv_indptr"] is updater.kv_indptr[0]:
            lens, total = call.arguments["seq_lens"], call.arguments["paged_kernel_lens_sum"]
            # Of DFLASH's plan SGLang is told where the keys begin, of EAGLE's not.
            call.arguments["spec_info"] = DFlashVerifyInput(
                tree.draft_token,
                tree.positions,
                tree.draft_token_num,
                custom_mask=window_cells(tree, lens, total, updater.sliding_window_size, _fill_len(updater)),
            )
            wrapper.forward = partial(_forward_without_window, wrapper)
        original(*call.args, **call.kwargs)

    return call_begin_forward


def _fill_len(updater: Any) -> int:
    """Prefix tokens of a request that SGLang pads a batch with."""
    return int(updater.attn_backend.get_cuda_graph_seq_len_fill_value())


def window_cells(
    tree: DDTreeVerifyInput,
    prefix_lens: torch.Tensor,  # [B] int32 or int64, padding's among them
    total_width: int,  # sum of the B requests' prefix tokens that a window can hold
    window: int,  # positions before a node's own that it may attend to
    fill_len: int,  # prefix tokens of padding
) -> torch.Tensor | None:
    """1-D bool: the B requests' cells in the layout of `core.window_mask`; None for a chain, which sees all keys.

    Where a batch is padded behind the tree's requests, padding sees whatever it likes: nobody reads it.
    """
    from ddtree_sglang.kernels.window_mask_triton import window_mask_into

    if tree.custom_mask is None:
        return None
    batch_size, num_nodes, flat = len(prefix_lens), tree.draft_token_num, tree.custom_mask
    num_trees = batch_size if tree.retrieve_index is None else len(tree.retrieve_index)
    if num_trees < batch_size:
        more = (batch_size - num_trees) * num_nodes * (fill_len + num_nodes)
        flat = torch.nn.functional.pad(flat, (0, more), value=True)
    made = WindowMask.empty(batch_size, num_nodes, window, flat.device)
    window_mask_into(made, flat.view(torch.uint8), prefix_lens, num_nodes, window)
    return made.cells[: num_nodes * (total_width + batch_size * num_nodes)]


def _forward_without_window(wrapper: Any, *arguments: Any, **options: Any) -> torch.Tensor:
    """In the place of a wrapper's `forward`, which SGLang hands the window of the layer."""
    attended: torch.Tensor = type(wrapper).forward(wrapper, *arguments, **options | {"window_left": -1})
    return attended


def dividing_masks(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """In the place of `FlashInferAttnBackend._create_prefill_wrappers`, which makes the wrappers of a graph.

    The buffer has a byte for each cell of a mask, which FlashInfer packs into a bit, so that a half is enough for all.
    """

    @wraps(original)
    def _create_prefill_wrappers(backend: Any, bs: int, use_custom_mask: bool = False) -> list[Any]:
        if not use_custom_mask or backend.num_wrappers == 1:
            return original(backend, bs, use_custom_mask)
        whole = backend.cuda_graph_custom_mask
        try:
            made = []
            for half in whole.split(len(whole) // 2)[:2]:
                backend.cuda_graph_custom_mask = half
                made.append(original(backend, bs, use_custom_mask))
        finally:
            backend.cuda_graph_custom_mask = whole
        return [made[0][0], made[1][1]]

    return _create_prefill_wrappers
