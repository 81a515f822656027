"""The end of the drafter's CUDA graph: LM head, candidates, trees and mask cells, in the same replay as the block.

SGLang runs a model runner's `capture_tail_hooks` inside the capture of its forward
(model_executor/runner/decode_cuda_graph_runner.py), once for each captured batch size. What the hook writes stays at
the same addresses, so a replay needs no launch of ours and the host waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, DraftCandidates
from ddtree_sglang.engine.stages.trees import DeviceTrees, TreeBuild, WantedTrees


class DraftGraphTail:
    """Capture hook; after a replay `trees(B)` are the batch's trees of N nodes, and `candidates(B)` what they are of.

    Both are overwritten by the next replay, which is ordered after this round's verify on the same stream. Candidates
    are kept for rounds that build trees of them: of fewer nodes, or under grammars.
    """

    def __init__(
        self,
        ranking: CandidateRanking,
        *,
        num_nodes: int,
        max_batch: int,
        flat_mask: torch.Tensor | None,
        device: Any,
    ) -> None:
        """Allocate what replays write, for up to `max_batch` requests; `flat_mask` as `BuiltTree.empty` takes it."""
        self.num_nodes = num_nodes
        self._ranking = ranking
        self._built = BuiltTree.empty(max_batch, num_nodes, device, flat_mask)
        self._candidates = ranking.empty_candidates(max_batch, device)

    def __call__(self, runner: Any, out: Any, forward_batch: Any, num_tokens: int) -> None:
        """Rank what the block proposes and build the trees; called by SGLang while it captures."""
        from ddtree_sglang.kernels.tree_builder_triton import build_into

        block_size = self._ranking.block_size
        batch_size = num_tokens // block_size
        # The block starts at the root, which stands where the committed tokens end; with a windowed drafter the
        # lengths in the graph would be the window's.
        root_ids = forward_batch.input_ids.view(batch_size, block_size)[:, 0]
        roots = BlockRoots(root_ids, forward_batch.req_pool_indices)
        ranked = self._ranking.rank(out.hidden_states, roots, self.candidates(batch_size))
        prefix_lens = forward_batch.positions.view(batch_size, block_size)[:, 0]
        build_into(
            self._built.first(batch_size),
            ranked.topk_ids,
            ranked.topk_logprobs,
            root_ids.to(torch.int64),
            prefix_lens.to(torch.int64),
            ranked.pair_logprobs,
        )

    def candidates(self, batch_size: int) -> DraftCandidates:
        """What the replay that was just launched ranked."""
        return self._candidates.first(batch_size)

    def trees(self, batch_size: int) -> BuiltTree:
        """The trees of the replay that was just launched."""
        return self._built.first(batch_size)


@dataclass(frozen=True)
class GraphTrees(DeviceTrees):
    """`DeviceTrees` of a drafter with CUDA graphs: a replay of one has built the trees of the configured N already."""

    tail: DraftGraphTail

    def draft(self, drafter_out: Any, roots: BlockRoots, wanted: WantedTrees) -> TreeBuild:
        """The replay's trees or, for fewer nodes or under grammars, its candidates; without one as `DeviceTrees`."""
        if not drafter_out.can_run_graph:
            return super().draft(drafter_out, roots, wanted)
        if wanted.num_nodes == self.tail.num_nodes and wanted.grammars is None:
            return lambda _root_ids, _prefix_lens: self.tail.trees(roots.batch_size)
        return self._build_of(self.tail.candidates(roots.batch_size), wanted)
