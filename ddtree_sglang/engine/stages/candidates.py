"""From the drafter's hidden states to ranked candidates: top-K ids and their log-probabilities per position.

The LM head is the target's, split over the vocabulary between tensor-parallel ranks. Each rank keeps its K best
logits and its log-sum-exp; only those are gathered, in one tensor, never a dense `[B, D, V]` one. Every rank then holds
the same numbers and so builds the same tree.

On a device the kernels of `kernels.candidates_triton` read the head's output as it is. On a host torch ranks a float32
copy; there, equal logits come in torch's order, not in core's.

Temperature stays 1 whatever the request asks for: the distributions rank nodes, and the target decides (paper, 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform, pair_conditionals
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.stages.pairwise_scorer import BlockRoots, PairwiseScorer
from ddtree_sglang.exceptions import DDTreeConfigError

__all__ = [
    "BlockRoots",
    "CandidateRanking",
    "DraftCandidates",
    "VocabShard",
    "rank_candidates",
    "rank_candidates_on_device",
]


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's slice of the target's LM head.

    Attributes:
        lm_head: SGLang's `ParallelLMHead`; its `quant_method` makes the product, so that a platform's version is used.
        num_rows: V_local, the rows of real tokens; the head may be padded past them.
        vocab_start: id of its first row.
        transform: the checkpoint's output multiplier and softcap.
        tp_group: SGLang's group coordinator, None on a single rank.
    """

    lm_head: Any
    num_rows: int
    vocab_start: int
    transform: LogitTransform
    tp_group: Any

    @classmethod
    def from_lm_head(cls, lm_head: Any, draft_config: Any, tp_group: Any) -> VocabShard:
        """Take the rows of this rank from SGLang's `ParallelLMHead` (layers/vocab_parallel_embedding.py).

        Raises:
            DDTreeConfigError: a quantized head, or one with added tokens, whose rows are not plain logits.
        """
        weight = getattr(lm_head, "weight", None)
        if weight is None or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise DDTreeConfigError(
                "DDTREE drafts through the target's LM head and needs it unquantized, got "
                f"{getattr(weight, 'dtype', None)}; use a target whose lm_head is float32, bfloat16 or float16."
            )
        shard = getattr(lm_head, "shard_indices", None)
        if shard is not None and int(shard.num_added_elements) != 0:
            raise DDTreeConfigError(
                f"DDTREE does not support added vocabulary in the LM head yet, got {int(shard.num_added_elements)} "
                "added tokens; use a target without them."
            )
        rows = int(shard.num_org_elements) if shard is not None else int(weight.shape[0])
        _prepare_drafts(getattr(lm_head, "quant_method", None), lm_head)
        return cls(
            lm_head=lm_head,
            num_rows=rows,
            vocab_start=int(shard.org_vocab_start_index) if shard is not None else 0,
            transform=LogitTransform(
                scale=float(getattr(draft_config, "output_multiplier", 1.0)),
                softcap=getattr(draft_config, "final_logit_softcapping", None),
            ),
            tp_group=tp_group if int(tp_group.world_size) > 1 else None,
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` -> `[rows, V_local]` in the head's dtype, rows as far apart as the head is padded."""
        hidden, method = hidden.to(self.lm_head.weight.dtype), self.lm_head.quant_method
        draft_logits = getattr(method, "draft_logits", None)
        logits = (
            method.apply(self.lm_head, hidden, None) if draft_logits is None else draft_logits(self.lm_head, hidden)
        )
        return logits[:, : self.num_rows]


def _prepare_drafts(method: Any, lm_head: Any) -> None:
    """Let a platform that has another product for what decides nothing make ready for it."""
    prepare = getattr(method, "prepare_drafts", None)
    if prepare is not None:
        prepare(lm_head)


@dataclass(frozen=True, slots=True)
class CandidateRanking:
    """How a server ranks what its drafter proposes.

    Attributes:
        shard: this rank's LM head.
        top_k: K.
        block_size: R, tokens of a draft block: the root and R - 1 masks.
        scorer: of a drafter whose head scores pairs of candidates; None for a plain one.
        first_state: row of a block whose state proposes depth 1: 1, the first mask's own, or 0, the root's, for a
            drafter that was trained to propose the next token everywhere. The rows behind propose the next depths.
    """

    shard: VocabShard
    top_k: int
    block_size: int
    scorer: PairwiseScorer | None = None
    first_state: int = 1

    @property
    def depth(self) -> int:
        """D, the positions that a block proposes."""
        return self.block_size - self.first_state

    @property
    def max_path_len(self) -> int:
        """P = D + 1, the most nodes of a path, root included."""
        return self.depth + 1

    def rank(self, hidden: torch.Tensor, roots: BlockRoots, out: DraftCandidates | None = None) -> DraftCandidates:
        """Rank the D drafted positions of B blocks; `hidden` is `[B * R, H]`, the drafter's states.

        `out`, contiguous `[B, D, K]`, is where results go if given: a CUDA graph needs them to keep their place. On a
        device results have K = `top_k` columns whatever the vocabulary's size, what is missing with log-probability
        -inf.
        """
        blocks = hidden.view(roots.batch_size, self.block_size, -1)
        states = blocks[:, self.first_state :]
        ranked = self._rank(states, out)
        if self.scorer is None:
            return ranked
        k = self.scorer.top_k
        best = DraftCandidates(ranked.topk_ids[..., :k], ranked.topk_logprobs[..., :k])
        pairs = pair_conditionals(self.scorer.scores(states, roots, best), best.topk_logprobs)
        if out is None or out.pair_logprobs is None:
            return DraftCandidates(ranked.topk_ids, ranked.topk_logprobs, pairs)
        out.pair_logprobs.copy_(pairs)
        return out

    def _rank(self, states: torch.Tensor, out: DraftCandidates | None) -> DraftCandidates:
        if is_device_path():
            return rank_candidates_on_device(states, self.shard, self.top_k, out)
        ranked = rank_candidates(states, self.shard, self.top_k)
        if out is None:
            return ranked
        out.topk_ids.copy_(ranked.topk_ids)
        out.topk_logprobs.copy_(ranked.topk_logprobs)
        return out

    def wider(self, top_k: int) -> CandidateRanking:
        """The same of at least so many candidates; pairs are scored of the best, as many as the head was made for."""
        return replace(self, top_k=max(self.top_k, top_k))

    def empty_candidates(self, batch_size: int, device: torch.device) -> DraftCandidates:
        """What `rank` writes into, for up to so many requests."""
        shape = (batch_size, self.depth, self.top_k)
        pairs = None if self.scorer is None else torch.empty((*shape, self.top_k), device=device)
        ids = torch.empty(shape, dtype=torch.int64, device=device)
        return DraftCandidates(ids, torch.empty(shape, device=device), pairs)


def rank_candidates_on_device(
    hidden: torch.Tensor,  # [B, D, H] the drafter's states of the positions that propose
    shard: VocabShard,
    top_k: int,
    out: DraftCandidates | None = None,
) -> DraftCandidates:
    """Rank each drafted position's tokens: K = top_k candidates, identical on every rank, in core's order.

    Two launches after the LM head's; under tensor parallelism one all-gather and one launch more.
    """
    from ddtree_sglang.kernels.candidates_triton import merge_shards_triton, rank_logits_triton, rank_shard_triton

    batch_size, depth = hidden.shape[:2]
    logits = shard.logits(hidden.reshape(batch_size * depth, -1))
    if shard.tp_group is None:
        ranked = rank_logits_triton(logits, top_k, shard.transform, out)
    else:
        packed = rank_shard_triton(logits, top_k, shard.transform, shard.vocab_start)
        ranked = merge_shards_triton(_gather(packed, shard.tp_group), shard.transform, out)
    shape = (batch_size, depth, top_k)
    return DraftCandidates(ranked.topk_ids.view(shape), ranked.topk_logprobs.view(shape))


def rank_candidates(
    hidden: torch.Tensor,  # [B, D, H] the drafter's states of the positions that propose
    shard: VocabShard,
    top_k: int,
) -> DraftCandidates:
    """Rank each drafted position's tokens with torch: min(top_k, V) candidates, identical on every rank."""
    batch_size, depth = hidden.shape[:2]
    logits = shard.transform(shard.logits(hidden.reshape(batch_size * depth, -1)))
    values, ids = torch.topk(logits, min(top_k, logits.shape[-1]), dim=-1)
    log_partition = torch.logsumexp(logits, dim=-1, keepdim=True)
    ids = ids + shard.vocab_start
    if shard.tp_group is not None:
        values, ids, log_partition = _merge_shards(values, ids, log_partition, shard.tp_group, top_k)
    return DraftCandidates(
        topk_ids=ids.view(batch_size, depth, -1),
        topk_logprobs=(values - log_partition).view(batch_size, depth, -1),
    )


def _gather(packed: torch.Tensor, tp_group: Any) -> torch.Tensor:
    """`[rows, words]` int32 of this rank -> `[ranks, rows, words]`, in rank order.

    The words travel as float32, whose bits nothing reads on the way: SGLang's shared-memory gather on CPUs takes no
    integers. Along dimension 0 the gathered tensor is as it arrives, without a copy.
    """
    gathered = tp_group.all_gather(packed.view(torch.float32), dim=0)
    return gathered.view(torch.int32).view(int(tp_group.world_size), *packed.shape)


def _merge_shards(
    values: torch.Tensor, ids: torch.Tensor, log_partition: torch.Tensor, tp_group: Any, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `rank_candidates` has of every shard, merged; a shard of fewer than K tokens fills up with -inf."""
    missing = (0, top_k - values.shape[-1])
    values, ids = functional.pad(values, missing, value=-torch.inf), functional.pad(ids, missing)
    words = [values.view(torch.int32), ids.to(torch.int32), log_partition.view(torch.int32)]
    gathered = _gather(torch.cat(words, dim=-1), tp_group)
    # Shards come in rank order, so equal scores keep the order of their ids, as on a single rank.
    by_row = gathered.movedim(0, 1)
    values, ids = (by_row[..., begin : begin + top_k].flatten(1).contiguous() for begin in (0, top_k))
    values = values.view(torch.float32)
    log_partition = torch.logsumexp(by_row[..., -1].contiguous().view(torch.float32), dim=-1, keepdim=True)
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :top_k]
    return values.gather(-1, order), ids.to(torch.int64).gather(-1, order), log_partition
