"""From the drafter's hidden states to ranked candidates: top-K ids and their log-probabilities per position.

The LM head is the target's, split over the vocabulary between tensor-parallel ranks. Each rank keeps its K best
logits and its log-sum-exp; only those are gathered, never a dense `[B, D, V]` tensor. Every rank then holds the
same numbers and so builds the same tree.

Temperature stays 1 whatever the request asks for: the distributions rank nodes, and the target decides (paper, 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddtree_sglang.exceptions import DDTreeConfigError


@dataclass(frozen=True, slots=True)
class DraftCandidates:
    """What the tree builder needs of a draft block."""

    topk_ids: torch.Tensor  # [B, D, K] int64, best first, ids of the whole vocabulary
    topk_logprobs: torch.Tensor  # [B, D, K] float32, log-softmax over the whole vocabulary, descending along K


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's slice of the target's LM head.

    Attributes:
        lm_head: SGLang's `ParallelLMHead`; its `quant_method` makes the product, so that a platform's version is used.
        num_rows: V_local, the rows of real tokens; the head may be padded past them.
        vocab_start: id of its first row.
        logit_scale: multiplies the logits (checkpoints with an output multiplier), 1.0 for none.
        softcap: logits are `softcap * tanh(logits / softcap)`, None for none.
        tp_group: SGLang's group coordinator, None on a single rank.
    """

    lm_head: Any
    num_rows: int
    vocab_start: int
    logit_scale: float
    softcap: float | None
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
        return cls(
            lm_head=lm_head,
            num_rows=rows,
            vocab_start=int(shard.org_vocab_start_index) if shard is not None else 0,
            logit_scale=float(getattr(draft_config, "output_multiplier", 1.0)),
            softcap=getattr(draft_config, "final_logit_softcapping", None),
            tp_group=tp_group if int(tp_group.world_size) > 1 else None,
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` -> `[rows, V_local]` float32."""
        hidden = hidden.to(self.lm_head.weight.dtype)
        logits = self.lm_head.quant_method.apply(self.lm_head, hidden, None)[:, : self.num_rows].float()
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@dataclass(frozen=True, slots=True)
class CandidateRanking:
    """How a server ranks what its drafter proposes.

    Attributes:
        shard: this rank's LM head.
        top_k: K.
        block_size: P, tokens of a draft block: the root and D masked positions.
    """

    shard: VocabShard
    top_k: int
    block_size: int

    def rank(self, hidden: torch.Tensor, batch_size: int) -> DraftCandidates:
        """Rank the D masked positions of B blocks; `hidden` is `[B * P, H]`, the drafter's states."""
        return rank_candidates(hidden.view(batch_size, self.block_size, -1)[:, 1:], self.shard, self.top_k)


def rank_candidates(
    hidden: torch.Tensor,  # [B, D, H] the drafter's states of the masked positions
    shard: VocabShard,
    top_k: int,
) -> DraftCandidates:
    """Rank each drafted position's tokens: K = min(top_k, V) candidates, identical on every rank."""
    batch_size, depth = hidden.shape[:2]
    logits = shard.logits(hidden.reshape(batch_size * depth, -1))
    values, ids = torch.topk(logits, min(top_k, logits.shape[-1]), dim=-1)
    log_partition = torch.logsumexp(logits, dim=-1, keepdim=True)
    ids = ids + shard.vocab_start
    if shard.tp_group is not None:
        values, ids, log_partition = _merge_shards(values, ids, log_partition, shard.tp_group, top_k)
    return DraftCandidates(
        topk_ids=ids.view(batch_size, depth, -1),
        topk_logprobs=(values - log_partition).view(batch_size, depth, -1),
    )


def _merge_shards(
    values: torch.Tensor, ids: torch.Tensor, log_partition: torch.Tensor, tp_group: Any, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Shards come in rank order, so equal scores keep the order of their ids, as on a single rank.
    values = tp_group.all_gather(values, dim=-1)
    ids = tp_group.all_gather(ids, dim=-1)
    log_partition = torch.logsumexp(tp_group.all_gather(log_partition, dim=-1), dim=-1, keepdim=True)
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :top_k]
    return values.gather(-1, order), ids.gather(-1, order), log_partition
