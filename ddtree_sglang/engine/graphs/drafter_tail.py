"""The end of the drafter's CUDA graph: LM head, candidates, trees and mask cells, in the same replay as the block.

SGLang runs a model runner's `capture_tail_hooks` inside the capture of its forward
(model_executor/runner/decode_cuda_graph_runner.py), once for each captured batch size. What the hook writes stays at
the same addresses, so a replay needs no launch of ours and the host waits for nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.engine.stages.candidates import DraftCandidates, VocabShard, rank_candidates
from ddtree_sglang.engine.stages.trees import TreeStage


class DraftGraphTail:
    """Capture hook; after a replay `trees(B)` are the batch's trees of N nodes, and `candidates(B)` what they are of.

    Both are overwritten by the next replay, which is ordered after this round's verify on the same stream. Candidates
    are kept only if asked for, where rounds of other widths build trees of them: keeping is two launches a replay.
    """

    def __init__(
        self,
        shard: VocabShard,
        stage: TreeStage,
        *,
        num_nodes: int,
        block_size: int,
        top_k: int,
        max_batch: int,
        keep_candidates: bool,
        device: Any,
    ) -> None:
        self.shard = shard
        self.block_size = block_size
        self.top_k = top_k
        self._built = BuiltTree.empty(max_batch, num_nodes, device, stage.flat_mask_for(max_batch, num_nodes))
        self._candidates: DraftCandidates | None = None
        if keep_candidates:
            shape = (max_batch, block_size - 1, top_k)
            self._candidates = DraftCandidates(
                torch.empty(shape, dtype=torch.int64, device=device), torch.empty(shape, device=device)
            )

    def __call__(self, runner: Any, out: Any, forward_batch: Any, num_tokens: int) -> None:
        """Rank what the block proposes and build the trees; called by SGLang while it captures."""
        from ddtree_sglang.kernels.tree_builder_triton import build_into

        batch_size = num_tokens // self.block_size
        hidden = out.hidden_states.view(batch_size, self.block_size, -1)[:, 1:]
        ranked = rank_candidates(hidden, self.shard, self.top_k)
        if self._candidates is not None:
            kept = self.candidates(batch_size)
            kept.topk_ids.copy_(ranked.topk_ids)
            kept.topk_logprobs.copy_(ranked.topk_logprobs)
        # The block starts at the root, which stands where the committed tokens end; with a windowed drafter the
        # lengths in the graph would be the window's.
        root_ids = forward_batch.input_ids.view(batch_size, self.block_size)[:, 0]
        prefix_lens = forward_batch.positions.view(batch_size, self.block_size)[:, 0]
        build_into(
            self._built.first(batch_size),
            ranked.topk_ids,
            ranked.topk_logprobs,
            root_ids.to(torch.int64).contiguous(),
            prefix_lens.to(torch.int64).contiguous(),
        )

    def candidates(self, batch_size: int) -> DraftCandidates:
        """What that replay ranked, for trees of another width."""
        held = self._candidates
        assert held is not None, "this tail was made without keep_candidates"
        return DraftCandidates(held.topk_ids[:batch_size], held.topk_logprobs[:batch_size])

    def trees(self, batch_size: int) -> BuiltTree:
        """The trees of the replay that was just launched."""
        return self._built.first(batch_size)
