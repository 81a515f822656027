"""The grammars of a batch through one round: what they keep out of its trees, and the mask of each node.

Where the trees are the host's, results are processed before the next round begins, so the grammars are up to date: each
request's tree is built under its grammar, from its most probable prefixes that the grammar allows, and the masks of its
nodes are there with it (core/grammar_tree.py).

On a device the scheduler runs ahead of its results. Its barrier waits for the round before and advances the grammars by
its tokens (scheduler.py, `_advance_pending_grammar`), here while the drafter's forward runs. The masks of the roots
keep what cannot follow a root out of the trees. Then the trees are copied to the host, which walks the grammars along
them while the target verifies, and the masks follow the verify to the device. A batch without grammars pays nothing.

A grammar that gives up below a root, which plain decoding does not ask of it, costs its request the tree, and nothing
else (`grammar_scouts`). Where llguidance gives up at a root, it allows an end token alone, here as in plain decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.constrained.base_grammar_backend import GrammarMask
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.utils.common import async_h2d

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.grammar_tree import Drafted, GrammarTree, allowed_first, build_grammar_tree
from ddtree_sglang.core.node_masks import GrammarGaveUp, fill_node_masks
from ddtree_sglang.core.round_ends import NO_LIMIT, RoundEnds
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.grammar_rows import on_whole_rows
from ddtree_sglang.engine.run_ends import is_over
from ddtree_sglang.engine.stages.grammar_scouts import explored, guided_part
from ddtree_sglang.engine.stages.target_choice import LogitsChange

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopiedTrees:
    """What a walk of the grammars needs of B trees, on its way to the host."""

    parents: torch.Tensor  # [B, N] int64
    token_ids: torch.Tensor  # [B, N] int64
    arrived: Any  # the device's event, None where the trees are the host's

    @classmethod
    def copy(cls, built: BuiltTree) -> CopiedTrees:
        """Begin to copy, behind what builds the trees and ahead of what is launched next."""
        tree = built.tree
        if not is_device_path():
            return cls(tree.parents, tree.token_ids, None)
        arrived = torch.get_device_module(tree.device).Event()
        parents, token_ids = (rows.to("cpu", non_blocking=True) for rows in (tree.parents, tree.token_ids))
        arrived.record()
        return cls(parents, token_ids, arrived)

    def lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """Wait for the copy: the parents and the tokens of each tree."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.parents.tolist(), self.token_ids.tolist()


@dataclass
class BatchGrammars:
    """The grammars of a batch's requests, and what a round knows of their masks."""

    reqs: list[Req]
    vocab_size: int
    barrier: Callable[[], None] | None  # advances the grammars by the round before; None once that is done
    _trees: CopiedTrees | None = None
    _mask: torch.Tensor | None = None  # [B * N, words] int32 on the host, of trees that were built under the grammars
    _roots_only: set[int] = field(default_factory=set)  # rows whose grammar gave up on the trees that are verified

    @classmethod
    def of(cls, batch: ScheduleBatch, barrier: Callable[[], None] | None) -> BatchGrammars | None:
        """Of a batch whose round begins; None if no request has a grammar."""
        if not batch.has_grammar:
            return None
        return cls(batch.reqs, int(batch.sampling_info.vocab_size), barrier)

    def plant(self, ranked: DraftCandidates, num_nodes: int, root_ids: torch.Tensor) -> DraftTree:
        """Trees of N = `num_nodes` from roots `[B]` int64 on the host, each under its request's grammar."""
        self._advance()
        best = ranked.scored()
        tree = build_draft_tree(best.topk_ids, best.topk_logprobs, root_ids, num_nodes, best.pair_logprobs)
        mask = self._open_mask(num_nodes)
        for row, req in self._constrained():
            pairs = [None] * ranked.topk_ids.shape[1] if best.pair_logprobs is None else best.pair_logprobs[row]
            positions = zip(ranked.topk_ids[row], ranked.topk_logprobs[row], pairs, strict=True)
            drafted = [Drafted.of(*position) for position in positions]
            first_row = row * num_nodes
            try:
                planted = build_grammar_tree(explored(req.grammar), drafted, num_nodes, mask, first_row)
            except GrammarGaveUp:
                planted = GrammarTree()
            except ValueError as error:
                planted = GrammarTree()
                _end_at_the_limit(req, error)
            mask[first_row + len(planted.parents) : first_row + num_nodes] = -1
            planted.write_into(tree, row)
        self._mask = mask
        return tree

    def prune_roots(self, ranked: DraftCandidates) -> DraftCandidates:
        """The candidates `[B, D, K]` on a device, of the first position those alone that may follow the root.

        To be called after the drafter's forward is launched: this waits for the round before.
        """
        self._advance()
        mask = self._open_mask(1)
        for row, req in self._constrained():
            if req.grammar.is_terminated():
                continue
            try:
                req.grammar.fill_vocab_mask(mask, row)
            except ValueError as error:
                _end_at_the_limit(req, error)
        return allowed_first(ranked, mask.to(ranked.topk_ids.device, non_blocking=True))

    def follow(self, built: BuiltTree) -> None:
        """Take the trees that will be verified; to be called before the verify is launched."""
        if self._mask is None:
            self._trees = CopiedTrees.copy(built)

    def masking(self, logits: torch.Tensor) -> LogitsChange:
        """What forbids each node's tokens; to be called after the verify is launched, with its logits `[B * N, V]`."""
        mask = self._walk() if self._mask is None else self._mask
        return partial(on_whole_rows, GrammarMask(self._any(), mask.to(logits.device, non_blocking=True)).apply)

    def _walk(self) -> torch.Tensor:
        assert self._trees is not None, "the trees are taken before the verify is launched"
        self._advance()
        parents, token_ids = self._trees.lists()
        num_nodes = len(parents[0])
        mask = self._open_mask(num_nodes)
        for row, req in self._constrained():
            try:
                fill_node_masks(explored(req.grammar), parents[row], token_ids[row], mask, row * num_nodes)
            except GrammarGaveUp:
                self._roots_only.add(row)
            except ValueError as error:
                self._roots_only.add(row)
                _end_at_the_limit(req, error)
        return mask

    def limit(self, ends: RoundEnds) -> RoundEnds:
        """Keep requests at their roots whose nodes have no masks; to be called after `masking`."""
        if not self._roots_only:
            return ends
        limits = [1 if row in self._roots_only else NO_LIMIT for row in range(len(self.reqs))]
        most = async_h2d(limits, dtype=torch.int64, device=ends.node_limits.device)
        return replace(ends, node_limits=ends.node_limits.minimum(most))

    def _advance(self) -> None:
        if self.barrier is not None:
            self.barrier()
            self.barrier = None

    def _constrained(self) -> Iterator[tuple[int, Req]]:
        """Requests with a grammar. Under overlap one that is over is in one round more, whose tokens nobody takes."""
        return ((row, req) for row, req in enumerate(self.reqs) if req.grammar is not None and not is_over(req))

    def _any(self) -> Any:
        return next(req.grammar for req in self.reqs if req.grammar is not None)

    def _open_mask(self, rows_each: int) -> torch.Tensor:
        mask: torch.Tensor = self._any().allocate_vocab_mask(
            vocab_size=self.vocab_size, batch_size=len(self.reqs) * rows_each, device="cpu"
        )
        return mask


def _end_at_the_limit(req: Req, error: ValueError) -> None:
    """A grammar gave up at its root: llguidance's row allows an end token by now, another one's cannot be known."""
    logger.error("The grammar of request %s gave up: %s", req.rid, error)
    if guided_part(req.grammar) is None and req.to_finish is None:
        req.to_finish = FINISH_ABORT(
            f"The request's grammar gave up: {error}", HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"
        )
