"""A round's trees, from ranked candidates: built by core on the host, by one kernel on a GPU.

Where the mask goes depends on who reads it. SGLang's FA3 and Triton backends read only the tail cells of a buffer of
theirs (layers/attention/verify_mask.py), so on those the kernel writes the cells in place: no memory is set, no prefix
copied. FlashInfer packs the whole mask, prefix columns included, so it gets one filled anew. On the host the ancestor
mask itself is what attention takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree, complete_tree
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.core.tree_mask import flat_tree_mask
from ddtree_sglang.engine.stages.candidates import DraftCandidates


def tail_mask_buffer(attn_backend: Any) -> torch.Tensor | None:
    """The buffer of a backend that reads no prefix cells, as flat bool, or None where there is none to write into."""
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    held = attn_backend.verify_mask
    if held is None or not held.is_read or held.mode != TreeMaskMode.FULL_MASK:
        return None
    return held.buffer.view(torch.bool)


@dataclass(frozen=True, slots=True)
class MaskBuffer:
    """A backend's buffer of flat bool cells, and how many requests it has room for."""

    cells: torch.Tensor
    max_batch: int


class TreeStage:
    """Builds trees out of D = `max_path_len` - 1 drafted positions, at any of the widths that a server verifies.

    Mask buffers are known per width once the target's graphs exist; before that, and where there is none, masks are
    `[B, N, N]`.
    """

    def __init__(self, max_path_len: int) -> None:
        self.max_path_len = max_path_len
        self._buffers: dict[int, MaskBuffer] = {}

    def use_buffer_of(self, attn_backend: Any, num_nodes: int) -> None:
        """Write masks of this width into the target backend's own buffer from now on, if it has one of the form."""
        cells = tail_mask_buffer(attn_backend)
        if cells is not None:
            self._buffers[num_nodes] = MaskBuffer(cells, int(attn_backend.verify_mask.max_bs))

    def flat_mask_for(self, batch_size: int, num_nodes: int) -> torch.Tensor | None:
        """The buffer of a width, if it has room for so many requests."""
        buffer = self._buffers.get(num_nodes)
        return buffer.cells if buffer is not None and batch_size <= buffer.max_batch else None

    def build(
        self, candidates: DraftCandidates, root_ids: torch.Tensor, prefix_lens: torch.Tensor, num_nodes: int
    ) -> BuiltTree:
        """The most probable N - 1 prefixes of each request as trees; nothing is read back from a GPU."""
        if root_ids.device.type == "cpu":
            tree = build_draft_tree(candidates.topk_ids, candidates.topk_logprobs, root_ids, num_nodes)
            return complete_tree(tree, prefix_lens, self.max_path_len - 1)
        from ddtree_sglang.kernels.tree_builder_triton import build_draft_tree_triton

        return build_draft_tree_triton(
            candidates.topk_ids,
            candidates.topk_logprobs,
            root_ids,
            prefix_lens,
            num_nodes,
            self.flat_mask_for(len(root_ids), num_nodes),
        )

    @staticmethod
    def custom_mask(built: BuiltTree, prefix_lens: torch.Tensor, total_prefix_len: int | None) -> torch.Tensor | None:
        """What the target's backend takes as `custom_mask`; None for a single node, a chain that is verified causally.

        Args:
            total_prefix_len: host sum of `prefix_lens`, or more; None if the host does not know.
        """
        if built.tree.num_nodes == 1:
            return None
        if built.is_flat:
            # The Triton backend copies what it is given onto its buffer, so give no more than is used.
            batch_size, num_nodes = built.tree.token_ids.shape
            used = None if total_prefix_len is None else num_nodes * (total_prefix_len + batch_size * num_nodes)
            return built.mask[:used]
        if built.mask.device.type == "cpu":
            return built.mask.flatten()
        return flat_tree_mask(built.mask, prefix_lens, total_prefix_len)
