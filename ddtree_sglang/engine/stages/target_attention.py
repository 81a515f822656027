"""What SGLang's attention backends are changed by for a tree, by what the target's layers have."""

from __future__ import annotations

from typing import Any

from ddtree_sglang.engine.attention_layers import has_sinks_without_window
from ddtree_sglang.engine.stages.trees import verifying_backend
from ddtree_sglang.engine.stages.window_masks import window_of_masks


def adapt_attention(runner: Any) -> None:
    """Make the target's backend place windows by position and count sinks once, where it would not.

    Args:
        runner: the target's model runner, its backend built and no graph captured.
    """
    from ddtree_sglang.contract.attention_patches import SINK_PATCHES, WINDOW_PATCHES
    from ddtree_sglang.contract.patch import assign

    has_masks = window_of_masks(runner) is not None
    # By name: where there is no FA3, its module cannot be imported.
    is_fa3 = type(verifying_backend(runner.attn_backend)).__name__ == "FlashAttentionBackend"
    merges_sinks = is_fa3 and has_sinks_without_window(runner.model)
    for patch in (*(WINDOW_PATCHES if has_masks else ()), *(SINK_PATCHES if merges_sinks else ())):
        assign(patch)
