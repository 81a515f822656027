"""How a server ranks what its drafter proposes, from the models that SGLang has loaded."""

from __future__ import annotations

from typing import Any

from sglang.srt.lora.layers import unwrap_lora_layer
from sglang.srt.speculative.dflash_utils import parse_dflash_draft_config

from ddtree_sglang.engine.stages.candidates import CandidateRanking, VocabShard
from ddtree_sglang.engine.stages.pair_scores import scorer_of
from ddtree_sglang.exceptions import DDTreeConfigError


def make_ranking(
    draft_runner: Any, target_model: Any, embedding: Any, tp_group: Any, top_k: int, block_size: int
) -> CandidateRanking:
    """Of a drafter's model runner and its target.

    Args:
        draft_runner: SGLang's `ModelRunner` of the drafter.
        target_model: SGLang's model of the target, whose LM head the drafter shares.
        embedding: the target's embedding module.
        tp_group: SGLang's group coordinator of the LM head's shards.
        top_k: K for a drafter that was trained for none.
        block_size: R, tokens of a block.

    Raises:
        DDTreeConfigError: a head whose scores depend on more than one token before, or an LM head that cannot be read.
    """
    draft_model, hf_config = draft_runner.model, draft_runner.model_config.hf_config
    draft_config = parse_dflash_draft_config(draft_hf_config=hf_config)
    if draft_config.is_domino:
        raise DDTreeConfigError(
            "DDTREE builds trees of scores that depend on one token before, got a drafter with a Domino head, whose "
            "scores depend on the whole path; use --speculative-algorithm DFLASH with it."
        )
    # The drafter drafts for the base model: without adapters, whatever the request's.
    lm_head = unwrap_lora_layer(target_model.lm_head)
    shard = VocabShard.from_lm_head(lm_head, draft_config, tp_group)
    if hasattr(draft_model, "attach_shared_modules"):
        # In a graph a DSpark drafter embeds its block itself.
        draft_model.attach_shared_modules(embed_tokens=embedding, lm_head=lm_head)
    scorer = scorer_of(draft_model, embedding, top_k)
    return CandidateRanking(
        shard,
        top_k if scorer is None else scorer.top_k,
        block_size,
        scorer,
        first_state=0 if getattr(draft_model, "sample_from_anchor", False) else 1,
    )
