"""What a round hands to SGLang's scheduler: its batch result, and how many nodes it verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.utils import GenerationBatchResult

from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput

if TYPE_CHECKING:
    from ddtree_sglang.core.round_commit import RoundCommit


@dataclass
class RoundResult(GenerationBatchResult):
    """Of a decode round; SGLang reads the base class's fields alone."""

    num_nodes: int = 1  # N, root included; 1: nothing was drafted


def result_of_round(
    target_out: Any, commit: RoundCommit, experts: Any, *, num_nodes: int, most_nodes: int, keep_alive: list[Any]
) -> RoundResult:
    """Of a round that verified `num_nodes` a request, on a server that verifies `most_nodes` at most.

    Args:
        target_out: the verify forward's result.
        experts: the accepted nodes' routed experts, None where nobody asked.
        keep_alive: what other streams still read when the round is over.
    """
    return RoundResult(
        num_nodes=num_nodes,
        logits_output=target_out.logits_output,
        next_token_ids=commit.path.token_ids.reshape(-1),
        accept_lens=commit.accept_lens,
        can_run_cuda_graph=target_out.can_run_cuda_graph,
        next_draft_input=DDTreeDraftInput.carry(commit.path.bonus_ids, commit.new_seq_lens),
        speculative_num_draft_tokens=most_nodes,
        speculative_output_stride=commit.path.token_ids.shape[1],
        new_seq_lens=commit.new_seq_lens,
        routed_experts_output=experts,
        extra_keep_alive_refs=keep_alive,
    )
