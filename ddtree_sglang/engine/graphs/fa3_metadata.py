"""FA3's metadata of a tree verify, made inside the verify's CUDA graph.

SGLang makes it before every replay, in some thirty launches, of which one copies the whole rows of all requests
(layers/attention/flashattention_backend.py, _apply_cuda_graph_metadata). What it is made of stands at fixed addresses
by then: lengths and rows in the graph's own inputs, the mask's cells in the backend's buffer, where the drafter's graph
has put them. So it is recorded with the forward, and a replay of a tree needs no launch that a chain's does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddtree_sglang.core.ancestor_pages import AncestorPages
from ddtree_sglang.engine.stages.trees import has_recurrent_layers, verifying_backend

_FA3 = "sglang.srt.layers.attention.flashattention_backend.FlashAttentionBackend"


@dataclass(frozen=True)
class TreeMetadata:
    """The metadata of one FA3 backend's tree verifies."""

    backend: Any

    @classmethod
    def of(cls, attn_backend: Any) -> TreeMetadata | None:
        """None for other backends, for chains, and where SGLang keeps more tables or translates slots.

        Beside recurrent layers, too: their metadata is made with FA3's before a replay.
        """
        if has_recurrent_layers(attn_backend):
            return None
        backend = verifying_backend(attn_backend)
        # By name: where there is no FA3, its module cannot be imported.
        if f"{type(backend).__module__}.{type(backend).__qualname__}" != _FA3:
            return None
        is_plain = not (
            backend.has_swa or backend.use_sliding_window_kv_pool or backend.kv_index_translator.reads_are_translated
        )
        return cls(backend) if is_plain and backend.topk > 1 and backend.verify_mask is not None else None

    def take_mask(self, custom_mask: torch.Tensor) -> None:
        """Put a round's mask where the graph reads it; one made in place, as a rule, is there already."""
        buffer = self.backend.verify_mask.buffer.view(torch.bool)
        if custom_mask.data_ptr() != buffer.data_ptr():
            buffer[: len(custom_mask)].copy_(custom_mask)

    def make(self, forward_batch: Any) -> None:
        """Fill the backend's buffers for a batch of the graph's own inputs; called while it is captured.

        The forward that follows reads these buffers.
        """
        from sglang.kernels.ops.attention.trtllm_mha_page_table import build_trtllm_mha_page_table

        from ddtree_sglang.kernels.ancestor_pages_triton import ancestor_pages_into

        backend, batch_size = self.backend, forward_batch.batch_size
        rows, prefix_lens = forward_batch.req_pool_indices[:batch_size], forward_batch.seq_lens[:batch_size]
        prefixes = backend.target_verify_metadata_topk_normal[batch_size]
        prefixes.cache_seqlens_int32.copy_(prefix_lens)
        torch.cumsum(prefix_lens, 0, dtype=torch.int32, out=prefixes.cu_seqlens_k[1:])
        build_trtllm_mha_page_table(
            req_to_token=backend.req_to_token,
            req_pool_indices=rows,
            cache_seqlens=prefixes.cache_seqlens_int32,
            page_table=prefixes.page_table,
            page_size=backend.page_size,
        )
        nodes = backend.target_verify_metadata_topk_expand[batch_size]
        made = AncestorPages(nodes.cache_seqlens_int32, nodes.page_table)
        ancestor_pages_into(made, backend.verify_mask.buffer, backend.req_to_token, rows, prefix_lens)
        torch.cumsum(made.counts, 0, dtype=torch.int32, out=nodes.cu_seqlens_k[1:])
        # A graph has both by address. With --debug-cuda-graph SGLang runs this function and the forward anew instead,
        # and the backend would still hold what the last prefill left here.
        backend.forward_metadata, backend.forward_metadata_spec_decode_expand = prefixes, nodes
