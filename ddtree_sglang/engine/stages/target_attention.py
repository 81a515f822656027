"""What SGLang's layers are changed by for a tree: windows, sinks and short convolutions, where a target has them."""

from __future__ import annotations

from typing import Any

from ddtree_sglang.engine.attention_layers import has_sinks_without_window
from ddtree_sglang.engine.stages.fa3_latent import has_latent_pages
from ddtree_sglang.engine.stages.fa3_windows import has_windows_in_pages
from ddtree_sglang.engine.stages.flashinfer_windows import window_of_wrapper
from ddtree_sglang.engine.stages.trees import verifies_with_fa3
from ddtree_sglang.engine.stages.window_masks import window_of_masks


def masked_window(runner: Any) -> int | None:
    """The target's window where it is part of a mask that each round makes; None for other targets and backends."""
    return window_of_masks(runner) or window_of_wrapper(runner)


def adapt_attention(runner: Any) -> None:
    """Make the target place windows by position, count sinks once and convolve along paths, where it would not.

    Args:
        runner: the target's model runner, its backend built and no graph captured.
    """
    from ddtree_sglang.contract.attention_patches import (
        LATENT_PATCHES,
        SINK_PATCHES,
        SLOT_PATCHES,
        WINDOW_PATCHES,
        WRAPPER_PATCHES,
    )
    from ddtree_sglang.contract.patch import Patch, assign
    from ddtree_sglang.contract.state_patches import SHORT_CONVOLUTION_PATCHES

    has_masks, has_wrappers = window_of_masks(runner) is not None, window_of_wrapper(runner) is not None
    merges_sinks = verifies_with_fa3(runner) and has_sinks_without_window(runner.model)
    convolves = type(runner.attn_backend).__name__ == "ShortConvHybridAttnBackend"
    needed: tuple[tuple[bool, tuple[Patch, ...]], ...] = (
        (has_masks, WINDOW_PATCHES),
        (has_wrappers, WRAPPER_PATCHES),
        (merges_sinks, SINK_PATCHES),
        (has_windows_in_pages(runner), SLOT_PATCHES),
        (has_latent_pages(runner), LATENT_PATCHES),
        (convolves, SHORT_CONVOLUTION_PATCHES),
    )
    for patch in (patch for is_needed, patches in needed if is_needed for patch in patches):
        assign(patch)
