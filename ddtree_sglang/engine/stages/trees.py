"""What a round asks of its trees: their inputs, draft them, mask them, walk them.

Two implementations, one of which is chosen when the worker is built. `HostTrees`: core's tensor operations, and the
ancestor mask itself for attention. `DeviceTrees`: one kernel makes the inputs, one builds, one walks, and nothing is
read back. `engine.graphs.drafter_tail.GraphTrees` takes over from `DeviceTrees` once the drafter has graphs.

Where the mask of a device goes depends on the backend that reads it. SGLang's FA3 and Triton backends read only the
tree cells of a buffer of theirs (layers/attention/verify_mask.py), so for those the kernel writes the cells in place:
no memory is set, no prefix copied. FlashInfer packs the whole mask, prefix columns included, and gets one filled anew.
So does every backend under deterministic inference, where Triton attends with a kernel that reads prefix columns too
(kernels/ops/attention/extend_attention.py, extend_attention_fwd_unified).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree, complete_tree
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.round_commit import RoundCommit, commit_round
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.core.round_inputs import RoundInputs, round_inputs
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, DraftCandidates
from ddtree_sglang.engine.stages.request_texts import LEAST_CANDIDATES, BatchTexts
from ddtree_sglang.engine.stages.verify_input import VerifyMask

if TYPE_CHECKING:
    from ddtree_sglang.engine.stages.node_grammar import BatchGrammars

GRAMMAR_CANDIDATES = 256
"""Candidates per position that a host ranks for a batch with grammars."""

TreeBuild = Callable[[torch.Tensor, torch.Tensor], BuiltTree]
"""What is left to do after a draft: trees from the roots `[B]` int64 and the prefix lengths `[B]` int64. A round that
drafts nothing has `core.built_tree.root_trees`."""
TreeCut = Callable[[DraftTree], int]
"""How many nodes of the drafted trees a round verifies; asked where the host has them."""


@dataclass(frozen=True, slots=True)
class WantedTrees:
    """What trees a round asks for."""

    num_nodes: int  # N
    grammars: BatchGrammars | None = None  # of the batch: they keep tokens that they forbid out of the trees
    cut: TreeCut | None = (
        None  # how many nodes are kept; asked where the host has the trees and no grammar planted them
    )
    texts: BatchTexts | None = None  # what the requests have said; on a host, where no grammar plants the trees


@dataclass(frozen=True)
class RoundTrees(ABC):
    """The trees' part of a round of B requests, on one kind of device."""

    ranking: CandidateRanking

    @staticmethod
    @abstractmethod
    def inputs(*tensors: Any, **sizes: Any) -> RoundInputs:
        """The round's slots and its draft block; arguments are those of `core.round_inputs`."""

    @abstractmethod
    def draft(self, drafter_out: Any, roots: BlockRoots, wanted: WantedTrees) -> TreeBuild:
        """Rank now what the drafter's forward proposes after `roots`, and build trees later."""

    @abstractmethod
    def build(
        self, ranked: DraftCandidates, num_nodes: int, root_ids: torch.Tensor, prefix_lens: torch.Tensor
    ) -> BuiltTree:
        """Trees of N = `num_nodes` from roots `[B]` int64, after prefixes of `[B]` int64 tokens."""

    @abstractmethod
    def verify_mask(self, built: BuiltTree, prefix_lens: torch.Tensor, total_prefix_len: int | None) -> VerifyMask:
        """The mask as the target's attention takes it; a chain of one node is verified causally.

        Args:
            prefix_lens: `[B]` int64.
            total_prefix_len: their sum on the host or an upper bound of it, None if the host does not know it.
        """

    @abstractmethod
    def walk(
        self, built: BuiltTree, target_ids: torch.Tensor, prefix_lens: torch.Tensor, ends: RoundEnds
    ) -> RoundCommit:
        """Follow the target's choices `target_ids [B, N]` int64 from the root, for at most P nodes.

        Args:
            prefix_lens: `[B]` int64, committed lengths before the round.
            ends: where each request's path stops.
        """


class HostTrees(RoundTrees):
    """Trees in the host's memory, where reading a value costs nothing."""

    @staticmethod
    def inputs(*tensors: Any, **sizes: Any) -> RoundInputs:
        """Core's."""
        return round_inputs(*tensors, **sizes)

    def draft(self, drafter_out: Any, roots: BlockRoots, wanted: WantedTrees) -> TreeBuild:
        """Under a grammar more candidates are ranked: it may forbid all of the best ones. Pairs are scored of the best,
        as many as the head was trained for.
        """
        hidden = drafter_out.logits_output.hidden_states
        if wanted.grammars is not None:
            ranked = self.ranking.wider(GRAMMAR_CANDIDATES).rank(hidden, roots)
            return partial(self._plant, wanted.grammars, ranked, wanted.num_nodes)
        if wanted.texts is None:
            ranked = self.ranking.rank(hidden, roots)
        else:
            ranked = wanted.texts.mixed(self.ranking.wider(LEAST_CANDIDATES).rank(hidden, roots))
        return partial(self.build, ranked, wanted.num_nodes, cut=wanted.cut)

    def build(
        self,
        ranked: DraftCandidates,
        num_nodes: int,
        root_ids: torch.Tensor,
        prefix_lens: torch.Tensor,
        cut: TreeCut | None = None,
    ) -> BuiltTree:
        """Core's tree, cut and completed."""
        tree = build_draft_tree(ranked.topk_ids, ranked.topk_logprobs, root_ids, num_nodes, ranked.pair_logprobs)
        return self._complete(tree, prefix_lens, cut)

    def _complete(self, tree: DraftTree, prefix_lens: torch.Tensor, cut: TreeCut | None) -> BuiltTree:
        kept = tree if cut is None else tree.first_nodes(cut(tree))
        return complete_tree(kept, prefix_lens, self.ranking.depth)

    def _plant(
        self,
        grammars: BatchGrammars,
        ranked: DraftCandidates,
        num_nodes: int,
        root_ids: torch.Tensor,
        prefix_lens: torch.Tensor,
    ) -> BuiltTree:
        return self._complete(grammars.plant(ranked, num_nodes, root_ids), prefix_lens, None)

    def verify_mask(self, built: BuiltTree, prefix_lens: torch.Tensor, total_prefix_len: int | None) -> VerifyMask:
        """The ancestor mask, which the CPU's attention reads."""
        ancestors = built.mask.cells
        return VerifyMask(ancestors.flatten() if built.tree.num_nodes > 1 else None, ancestors)

    def walk(
        self, built: BuiltTree, target_ids: torch.Tensor, prefix_lens: torch.Tensor, ends: RoundEnds
    ) -> RoundCommit:
        """Core's walk."""
        return commit_round(built.tree, target_ids, prefix_lens, self.ranking.max_path_len, ends)


@dataclass(frozen=True)
class MaskBuffer:
    """A backend's buffer of flat bool cells, the requests it has room for, and what the backend reads of a mask."""

    cells: torch.Tensor
    max_batch: int
    in_place: bool  # False: the prefix columns are read, so each mask is made anew and the backend copies it in
    by_address: bool  # of a mask made in place, the backend reads no size

    def prefix_room(self, batch_size: int, num_nodes: int) -> int:
        """Most prefix tokens that a mask for so many requests can cover: Triton copies a mask of this size at most."""
        return self.cells.numel() // num_nodes - batch_size * num_nodes


def mask_buffers(backends: Mapping[int, Any], *, deterministic: bool) -> dict[int, MaskBuffer]:
    """By N, the buffer of each attention backend that has one for the flat layout; other backends are left out.

    Under `deterministic` inference no mask is made in place, whatever the backend.
    """
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    held = {num_nodes: (backend.verify_mask, verifying_backend(backend)) for num_nodes, backend in backends.items()}
    return {
        num_nodes: MaskBuffer(
            mask.buffer.view(torch.bool),
            int(mask.max_bs),
            in_place=not deterministic,
            by_address=isinstance(backend, TritonAttnBackend),
        )
        for num_nodes, (mask, backend) in held.items()
        if mask is not None and mask.is_read and mask.mode == TreeMaskMode.FULL_MASK
    }


def has_recurrent_layers(backend: Any) -> bool:
    """Whether it is SGLang's pair of a backend that attends and one for recurrent layers."""
    return hasattr(backend, "linear_attn_backend")


def verifying_backend(backend: Any) -> Any:
    """The backend that verifies a tree's attention.

    Of a target with recurrent layers, the one beside theirs (layers/attention/hybrid_linear_attn_backend.py); of a pair
    for prefill and decode, the one that verifies (layers/attention/hybrid_attn_backend.py).
    """
    from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    if has_recurrent_layers(backend):
        backend = backend.full_attn_backend
    if isinstance(backend, HybridAttnBackend):
        return backend._select_backend(ForwardMode.TARGET_VERIFY)
    return backend


def verifies_with_fa3(runner: Any) -> bool:
    """Whether FA3 attends to a target's trees; its runner's backend is built."""
    # By name: where there is no FA3, its module cannot be imported.
    return type(verifying_backend(runner.attn_backend)).__name__ == "FlashAttentionBackend"


@dataclass(frozen=True)
class DeviceTrees(RoundTrees):
    """Trees in an accelerator's memory, which the host never waits for."""

    # By N, the target's buffers; for any other N, and for more requests, masks are [B, N, N] tensors.
    buffers: Mapping[int, MaskBuffer]

    @staticmethod
    def inputs(*tensors: Any, **sizes: Any) -> RoundInputs:
        """The same in one launch."""
        from ddtree_sglang.kernels.round_inputs_triton import round_inputs_triton

        return round_inputs_triton(*tensors, **sizes)

    def draft(self, drafter_out: Any, roots: BlockRoots, wanted: WantedTrees) -> TreeBuild:
        """In launches of their own."""
        return self._build_of(self.ranking.rank(drafter_out.logits_output.hidden_states, roots), wanted)

    def _build_of(self, ranked: DraftCandidates, wanted: WantedTrees) -> TreeBuild:
        pruned = ranked if wanted.grammars is None else wanted.grammars.prune_roots(ranked)
        return partial(self.build, pruned, wanted.num_nodes)

    def flat_mask_for(self, batch_size: int, num_nodes: int) -> torch.Tensor | None:
        """The buffer for N, if there is one that masks are made in and it has room for so many requests."""
        buffer = self._buffer(batch_size, num_nodes)
        return buffer.cells if buffer is not None and buffer.in_place else None

    def _buffer(self, batch_size: int, num_nodes: int) -> MaskBuffer | None:
        buffer = self.buffers.get(num_nodes)
        return buffer if buffer is not None and batch_size <= buffer.max_batch else None

    def build(
        self, ranked: DraftCandidates, num_nodes: int, root_ids: torch.Tensor, prefix_lens: torch.Tensor
    ) -> BuiltTree:
        """The same in one launch, its mask in the backend's buffer where there is one."""
        from ddtree_sglang.kernels.tree_builder_triton import build_draft_tree_triton

        flat_mask = self.flat_mask_for(len(root_ids), num_nodes)
        return build_draft_tree_triton(
            ranked.topk_ids, ranked.topk_logprobs, root_ids, prefix_lens, num_nodes, flat_mask, ranked.pair_logprobs
        )

    def verify_mask(self, built: BuiltTree, prefix_lens: torch.Tensor, total_prefix_len: int | None) -> VerifyMask:
        """The flat layout; for a chain, none is filled."""
        num_nodes = built.tree.num_nodes
        if num_nodes == 1:
            return VerifyMask(None, None)
        buffer = self._buffer(len(prefix_lens), num_nodes)
        if buffer is None:
            return VerifyMask(built.mask.flat(prefix_lens, total_prefix_len), None)
        if built.mask.is_flat and buffer.by_address:
            # Outside a graph Triton's kernel gets the address. A graph has it already, and what is handed on here is
            # copied onto itself (triton_backend.py, _update_target_verify_buffers): the whole of it would be a pass
            # over N times all prefixes.
            return VerifyMask(built.mask.cells[:1], None)
        if total_prefix_len is not None:
            # A bound may be past what the buffer was sized for, the lengths themselves are not.
            total_prefix_len = min(total_prefix_len, buffer.prefix_room(len(prefix_lens), num_nodes))
        return VerifyMask(built.mask.flat(prefix_lens, total_prefix_len), None)

    def walk(
        self, built: BuiltTree, target_ids: torch.Tensor, prefix_lens: torch.Tensor, ends: RoundEnds
    ) -> RoundCommit:
        """The same in one launch."""
        from ddtree_sglang.kernels.round_commit_triton import commit_round_triton

        return commit_round_triton(built.tree, target_ids, prefix_lens, self.ranking.max_path_len, ends)


def make_trees(ranking: CandidateRanking) -> RoundTrees:
    """The implementation for the platform that serves."""
    return DeviceTrees(ranking, {}) if is_device_path() else HostTrees(ranking)
