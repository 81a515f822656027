"""Faults of attention to put back, as `mutations`: windows, sinks, and the pool of layers with a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def windows_by_index_in_the_tree() -> None:
    """Triton's kernel cuts a window by a node's index, as SGLang has it."""
    from ddtree_sglang.engine.stages import window_masks

    def unchanged(original: Callable[..., Any]) -> Callable[..., Any]:
        return original

    set_attribute(window_masks, "attending_by_position", unchanged)


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
    sinks_left_out,
    pictures_of_the_neighbour,
    rows_of_windows_stay_where_they_are,
)
