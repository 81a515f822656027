"""Every change to SGLang's attention backends; installed when the target's backend is built, where it is needed."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_TRITON = "sglang.srt.layers.attention.triton_backend.TritonAttnBackend"
_WINDOWS = "ddtree_sglang.engine.stages.window_masks"

WINDOW_PATCHES = (
    Patch(
        f"{_TRITON}.init_forward_metadata",
        "assign",
        f"{_WINDOWS}:making_masks",
        "a tree's layers with a sliding window need a mask of their own",
    ),
    Patch(
        f"{_TRITON}.init_forward_metadata_out_graph",
        "assign",
        f"{_WINDOWS}:keeping_masks_of_graphs",
        "so do those of a graph",
    ),
    Patch(
        f"{_TRITON}._forward_extend_kernel",
        "assign",
        f"{_WINDOWS}:attending_by_position",
        "a window would be cut by a node's index in the tree",
    ),
    Patch(
        f"{_TRITON}._forward_extend_unified",
        "assign",
        f"{_WINDOWS}:attending_by_position_in_one_go",
        "so it would be under deterministic inference",
    ),
)
"""Of the Triton backend, for a target with sliding windows."""

_FLASHINFER = "sglang.srt.layers.attention.flashinfer_backend"
_WRAPPERS = "ddtree_sglang.engine.stages.flashinfer_windows"

WRAPPER_PATCHES = (
    Patch(
        f"{_FLASHINFER}.FlashInferIndicesUpdaterPrefill.call_begin_forward",
        "assign",
        f"{_WRAPPERS}:planning_by_position",
        "a tree's layers with a sliding window would read the first keys of a text, under a mask of all of them",
    ),
    Patch(
        f"{_FLASHINFER}.FlashInferAttnBackend._create_prefill_wrappers",
        "assign",
        f"{_WRAPPERS}:dividing_masks",
        "in a graph these layers would read the mask of the others",
    ),
)
"""Of the FlashInfer backend, for a target with sliding windows."""

_FA3 = "sglang.srt.layers.attention.flashattention_backend"
_SINKS = "ddtree_sglang.engine.stages.attention_sinks"

SINK_PATCHES = (
    Patch(
        f"{_FA3}.FlashAttentionBackend.forward_extend",
        "assign",
        f"{_SINKS}:attending_without_sinks",
        "sinks would be counted for a tree's prefix and again for its nodes",
    ),
    Patch(
        f"{_FA3}.merge_state_v2_wrapper",
        "assign",
        f"{_SINKS}:merging_with_sinks",
        "they are counted where the two parts meet",
    ),
)
"""Of the FA3 backend, for a target with attention sinks in layers without a window."""

_SLOTS = "ddtree_sglang.engine.stages.fa3_windows"

SLOT_PATCHES = (
    Patch(
        f"{_FA3}.FlashAttentionBackend._init_sliding_window_attn_spec_metadata",
        "assign",
        f"{_SLOTS}:making_rows_of_slots",
        "a tree's layers with a sliding window would be asserted to have pages of one token",
    ),
    Patch(
        f"{_FA3}.FlashAttentionBackend.get_paged_mha_kv_cache",
        "assign",
        f"{_SLOTS}:viewing_slots",
        "these layers would read whole pages by rows of single slots",
    ),
)
"""Of the FA3 backend, for a target with sliding windows in pages of several tokens."""

_LATENT = "ddtree_sglang.engine.stages.fa3_latent"

LATENT_PATCHES = (
    Patch(
        f"{_FA3}.FlashAttentionBackend.forward_extend",
        "assign",
        f"{_LATENT}:attending_by_slots",
        "which table names slots would not be known where it is read",
    ),
    Patch(
        f"{_FA3}.flash_attn_with_kvcache",
        "assign",
        f"{_LATENT}:viewing_latent_slots",
        "a tree's nodes would be read from the pages that their slots' numbers name",
    ),
)
"""Of the FA3 backend, for a target with latent attention in pages of several tokens."""
