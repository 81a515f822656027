"""Faults of attention to put back, as `mutations`: windows, sinks, and the pool of layers with a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch


def windows_by_index_in_the_tree() -> None:
    """Triton's kernel cuts a window by a node's index, as SGLang has it."""
    from ddtree_sglang.engine.stages import window_masks

    def unchanged(original: Callable[..., Any]) -> Callable[..., Any]:
        return original

    set_attribute(window_masks, "attending_by_position", unchanged)


def windows_by_index_in_one_go() -> None:
    """Triton's kernel of deterministic inference does, as SGLang has it."""
    from ddtree_sglang.engine.stages import window_masks

    def unchanged(original: Callable[..., Any]) -> Callable[..., Any]:
        return original

    set_attribute(window_masks, "attending_by_position_in_one_go", unchanged)


def windows_by_index_beside_a_mask() -> None:
    """FlashInfer's kernel cuts a window by a node's index as well, as it does where it is handed one."""

    def cut(rows: torch.Tensor, width: int, window: int) -> torch.Tensor:
        nodes = torch.arange(len(rows))
        return rows & (torch.arange(rows.shape[1]) >= width + nodes[:, None] - window)

    _change_cells(cut)


def windows_one_token_short() -> None:
    """On FlashInfer a node sees the token at the far end of its window no more."""

    def cut(rows: torch.Tensor, width: int, window: int) -> torch.Tensor:
        depths = rows[:, width:].sum(1) - 1
        return rows & (torch.arange(rows.shape[1]) > width + depths[:, None] - window)

    _change_cells(cut)


def _change_cells(cut: Callable[[torch.Tensor, int, int], torch.Tensor]) -> None:
    """Change each request's rows of FlashInfer's mask for windows, `[N, width + N]` bool."""
    from ddtree_sglang.engine.stages import flashinfer_windows

    original = flashinfer_windows.window_cells

    def window_cells(tree: Any, prefix_lens: torch.Tensor, total: int, window: int, fill_len: int) -> Any:
        cells = original(tree, prefix_lens, total, window, fill_len)
        if cells is None:
            return None
        num_nodes, first = tree.draft_token_num, 0
        for length in prefix_lens.tolist():
            width = min(length, window)
            size = num_nodes * (width + num_nodes)
            rows = cells[first : first + size].view(num_nodes, width + num_nodes)
            rows.copy_(cut(rows.clone(), width, window))
            first += size
        return cells

    set_attribute(flashinfer_windows, "window_cells", window_cells)


def keys_of_a_window_from_the_texts_start() -> None:
    """FlashInfer's wrapper for windows reads the first keys of a text in the place of the last, as SGLang has it."""
    from sglang.srt.speculative.dflash_info import DFlashVerifyInput

    original = DFlashVerifyInput.generate_attn_arg_prefill

    def generate(verify_input: Any, **named: Any) -> Any:
        return original(verify_input, **named | {"kv_start_idx": None})

    set_attribute(DFlashVerifyInput, "generate_attn_arg_prefill", generate)


def windows_read_the_mask_of_the_others() -> None:
    """On FlashInfer the two wrappers of a graph have one buffer of masks, as SGLang has it."""
    from ddtree_sglang.engine.stages import flashinfer_windows

    def unchanged(original: Callable[..., Any]) -> Callable[..., Any]:
        return original

    set_attribute(flashinfer_windows, "dividing_masks", unchanged)


def windows_read_slots_of_the_other_pool() -> None:
    """On FA3 a node's row under a window has slots of the pool of the layers that see everything."""
    from ddtree_sglang.engine.stages import fa3_windows

    original = fa3_windows.making_rows_of_slots

    def untranslated(stock: Callable[..., None]) -> Callable[..., None]:
        made = original(stock)

        def init(backend: Any, *metadata: Any) -> None:
            backend.use_sliding_window_kv_pool = False
            try:
                made(backend, *metadata)
            finally:
                backend.use_sliding_window_kv_pool = True

        return init

    set_attribute(fa3_windows, "making_rows_of_slots", untranslated)


def windows_one_slot_off_within_a_page() -> None:
    """On FA3 a prefix's slots are those beside them in their pages."""
    from ddtree_sglang.engine.stages import fa3_windows

    original = fa3_windows.slots_of_pages

    def slots(page_table: torch.Tensor, page_size: int, num_tokens: int) -> torch.Tensor:
        right = original(page_table, page_size, num_tokens)
        return right - right % page_size + (right + 1) % page_size

    set_attribute(fa3_windows, "slots_of_pages", slots)


def windows_of_whole_pages() -> None:
    """On FA3 a node's row of slots is read as one of pages."""
    from ddtree_sglang.engine.stages import fa3_windows

    def unchanged(original: Callable[..., Any]) -> Callable[..., Any]:
        return original

    set_attribute(fa3_windows, "viewing_slots", unchanged)


def latent_nodes_of_whole_pages() -> None:
    """On FA3 a tree's latent rows are read from pages that their slots' numbers name, as SGLang has it."""
    from ddtree_sglang.engine.stages import fa3_latent

    set_attribute(fa3_latent, "in_slots", lambda pages: pages)


def windows_one_token_short_on_fa3() -> None:
    """On FA3 a node sees the token at the far end of its window no more."""
    from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

    original = FlashAttentionBackend.forward_extend

    def forward_extend(backend: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any, *others: Any, **named: Any) -> Any:
        window = layer.sliding_window_size
        if batch.forward_mode.is_target_verify() and window > 0:
            layer.sliding_window_size = window - 1
        try:
            return original(backend, q, k, v, layer, batch, *others, **named)
        finally:
            layer.sliding_window_size = window

    set_attribute(FlashAttentionBackend, "forward_extend", forward_extend)


def sinks_left_out() -> None:
    """A tree's nodes attend without their layer's sinks."""
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    original = TritonAttnBackend.forward_extend

    def forward_extend(backend: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any, *others: Any, **named: Any) -> Any:
        if batch.forward_mode.is_target_verify():
            named["sinks"] = None
        return original(backend, q, k, v, layer, batch, *others, **named)

    set_attribute(TritonAttnBackend, "forward_extend", forward_extend)


def pictures_of_the_neighbour() -> None:
    """Nodes stand behind the pictures of the request before theirs, which take fewer positions than places, too."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    original = ForwardBatch.compute_spec_mrope_positions

    def compute(forward_batch: Any, runner: Any, batch: Any, *positions: Any) -> None:
        pictures = batch.multimodal_inputs
        batch.multimodal_inputs = [*pictures[-1:], *pictures[:-1]]
        try:
            original(forward_batch, runner, batch, *positions)
        finally:
            batch.multimodal_inputs = pictures

    set_attribute(ForwardBatch, "compute_spec_mrope_positions", compute)


def rows_of_windows_stay_where_they_are() -> None:
    """Accepted nodes move in the pool of the layers that see everything, and not in that of the others."""
    from ddtree_sglang.engine.stages.kv_moves import WindowedMover

    def move(mover: Any, slots: Any, accepted: Any) -> None:
        mover.full.move(slots, accepted)

    set_attribute(WindowedMover, "move", move)


def rows_of_one_width() -> None:
    """Keys are taken to be as narrow as values where accepted nodes move."""
    from ddtree_sglang.kernels.kv_move_triton import KVRows

    original = KVRows.of.__func__  # type: ignore[attr-defined]

    def of(cls: type, buffers: Any) -> Any:
        made = original(cls, buffers)
        narrowest = int(made.row_bytes.min())
        return replace(made, row_bytes=torch.full_like(made.row_bytes, narrowest), widest_row_bytes=narrowest)

    set_attribute(KVRows, "of", classmethod(of))


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Put `value` in the place of what is there.

    Raises:
        AttributeError: nothing is.
    """
    if not hasattr(owner, name):
        raise AttributeError(
            f"a mutation replaces what is there, found no {name} in {owner}; follow the product's name"
        )
    setattr(owner, name, value)


ATTENTION_MUTATIONS = (
    windows_by_index_in_the_tree,
    windows_by_index_in_one_go,
    windows_by_index_beside_a_mask,
    windows_one_token_short,
    keys_of_a_window_from_the_texts_start,
    windows_read_the_mask_of_the_others,
    windows_read_slots_of_the_other_pool,
    windows_one_slot_off_within_a_page,
    windows_of_whole_pages,
    latent_nodes_of_whole_pages,
    windows_one_token_short_on_fa3,
    sinks_left_out,
    pictures_of_the_neighbour,
    rows_of_windows_stay_where_they_are,
    rows_of_one_width,
)
