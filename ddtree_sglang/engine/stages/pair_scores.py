"""Drafters whose head scores pairs of adjacent candidates: from its states to a score per depth, parent and candidate.

A plain DFlash drafter gives each position a distribution of its own. These heads look at the token before, too, and
only at that one, so all their scores of a block are one `[B, D, K, K]` tensor (`core.tree_builder`). Each scorer reads
the parameters of the module that SGLang built and loaded, by these facts of its source:

* DFlash2's selector (models/dflash.py, `CandidateSelector`): the logit of c, plus the product of a row of p, weighed by
  a projection of the position's state, and a row of c.
* DSpark's Markov head (models/dspark.py): the logit of c, plus the product of a row of p and a row of c; the gated kind
  weighs p's row by a gate of the position's state and that row.
* LiLiCorr (models/lilicorr.py, `LiLiCorrHead`): a small transformer over all candidates of a block gives each two
  unit vectors; the score is the scaled product of one of p's and one of c's. It also reads the projected features of
  the last committed token, which are kept by request from the end of one round to the next.

What does not fit: Domino's correction is a function of the whole path (speculative/domino_utils.py), as is DSpark's
recurrent head.
"""

from __future__ import annotations

from typing import Any

import torch

from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.engine.stages.pairwise_scorer import BlockRoots, PairwiseScorer

MARKOV_CANDIDATES = 32
"""K of a Markov head, which was trained for none: a score costs its rank, and there are K squared of them."""


class _Stateless:
    """A head that looks at its block alone."""

    def prepare(self, num_rows: int) -> None:
        """Nothing is kept."""

    def keep(self, rows: torch.Tensor, anchors: torch.Tensor) -> None:
        """Nothing is kept."""


class SelectorScorer(_Stateless):
    """Of `CandidateSelector`."""

    def __init__(self, selector: Any) -> None:
        self.top_k = int(selector.top_k)
        self._selector = selector

    def scores(self, states: torch.Tensor, roots: BlockRoots, ranked: DraftCandidates) -> torch.Tensor:
        """The logit, less the log-partition that all candidates of a depth share, plus the product."""
        weights = self._selector.hidden_projection(states).unsqueeze(2)
        parents = self._selector.predecessor_codebook[parent_ids(ranked.topk_ids, roots)] * weights
        return ranked.topk_logprobs.unsqueeze(2) + products(parents, self._selector.successor_codebook[ranked.topk_ids])


class MarkovScorer(_Stateless):
    """Of `VanillaMarkov` or `GatedMarkovHead`."""

    def __init__(self, markov: Any, top_k: int) -> None:
        self.top_k = min(top_k, MARKOV_CANDIDATES)
        self._markov = markov
        self._is_gated = hasattr(markov, "gate_proj")

    def scores(self, states: torch.Tensor, roots: BlockRoots, ranked: DraftCandidates) -> torch.Tensor:
        """The logit, less the log-partition that all candidates of a depth share, plus the product."""
        ids = parent_ids(ranked.topk_ids, roots)
        parents = self._markov.get_prev_embeddings(ids)
        if self._is_gated:
            gates = self._markov.compute_gate(ids, states.unsqueeze(2).expand(-1, -1, ids.shape[2], -1))
            parents = parents * gates.to(parents.dtype)
        return ranked.topk_logprobs.unsqueeze(2) + products(parents, self._markov.markov_w2.weight[ranked.topk_ids])


class LatticeScorer:
    """Of `LiLiCorrHead`; `embedding` is the target's module, which gives whole rows on every tensor-parallel rank."""

    def __init__(self, lattice: Any, embedding: Any) -> None:
        self.top_k = int(lattice.candidate_topk)
        self._lattice = lattice
        self._embedding = embedding
        parameter = lattice.slot_embedding
        # SGLang makes them when it loads weights, which `--load-format dummy` does not.
        lattice.materialize_inference_buffers(parameter.device, parameter.dtype)
        self._anchors = torch.zeros(0)

    def prepare(self, num_rows: int) -> None:
        """A row of features for each request."""
        parameter = self._lattice.slot_embedding
        width = int(self._lattice.context_proj.input_size)
        self._anchors = torch.zeros(num_rows, width, dtype=parameter.dtype, device=parameter.device)

    def keep(self, rows: torch.Tensor, anchors: torch.Tensor) -> None:
        """In the requests' own rows: a batch that loses or gains a request before the next round mixes up none.

        An idle batch has no request, and SGLang still holds what it projected for the batch before.
        """
        if len(rows) == len(anchors):
            self._anchors.index_copy_(0, rows.to(torch.int64), anchors.to(self._anchors.dtype))

    def scores(self, states: torch.Tensor, roots: BlockRoots, ranked: DraftCandidates) -> torch.Tensor:
        """The scaled products of the head's vectors."""
        anchors = self._anchors[roots.rows.to(torch.int64)]
        start, pairs = self._lattice.score(
            token_embeddings=self._embedding(ranked.topk_ids).unsqueeze(1),
            candidate_log_probs=ranked.topk_logprobs.unsqueeze(1),
            pass_hidden=states.unsqueeze(1),
            anchor_hidden=anchors.unsqueeze(1),
            anchor_valid=torch.ones_like(roots.rows, dtype=torch.bool).unsqueeze(1),
        )
        start, pairs = self._lattice.log_factors(start, pairs)
        first = start[:, :, None, :].expand(-1, -1, self.top_k, -1)  # [B, 1, K, K]
        return torch.cat((first, pairs[:, 0]), dim=1)


def parent_ids(topk_ids: torch.Tensor, roots: BlockRoots) -> torch.Tensor:
    """`[B, D, K]` int64: at depth 1 the root, K times; below, the candidates of the depth before."""
    first = roots.token_ids.to(topk_ids.dtype)[:, None, None].expand(-1, 1, topk_ids.shape[2])
    return torch.cat((first, topk_ids[:, :-1]), dim=1)


def products(parents: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Of rows `[B, D, K, r]` each: `[B, D, K, K]` float32."""
    return parents.float() @ candidates.float().transpose(2, 3)


def scorer_of(draft_model: Any, embedding: Any, top_k: int) -> PairwiseScorer | None:
    """The scorer of a drafter that SGLang has loaded, None for a plain one; `top_k` where its head is for no K."""
    if getattr(draft_model, "candidate_selector", None) is not None:
        return SelectorScorer(draft_model.candidate_selector)
    if getattr(draft_model, "lilicorr", None) is not None:
        return LatticeScorer(draft_model.lilicorr, embedding)
    if getattr(draft_model, "markov_head", None) is not None:
        return MarkovScorer(draft_model.markov_head, top_k)
    return None
