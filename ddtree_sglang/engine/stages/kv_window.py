"""The KV window of a round: its slots, and the room that a request's row must leave for it.

A request's window is the W = max(N, R) slots from its committed length on: the drafter's block writes the first R, the
target's tree the first N. A path has no more tokens than its tree, so that its slots are among them. Overlap scheduling
reserves two windows, because the committed length that the host knows is one round old
(mem_cache/allocation_sizing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2

from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.core.round_inputs import RoundInputs
from ddtree_sglang.engine.spec import is_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.mem_cache.kv_loc_plan import KVLocPlan


def window_len() -> int:
    """W, from the published configuration."""
    spec = get_spec()
    return max(int(spec.speculative_num_draft_tokens), int(spec.speculative_dflash_block_size))


def row_headroom(original: Callable[[], int]) -> int:
    """AROUND hook on `get_req_to_token_extra_context_len`: room for two windows past the context length.

    Stock sizes the row for one window and four tokens, while a request that is near the context limit gets two
    reserved, in whole pages: the writer has no bound check and would spill into the next request's row.
    """
    extra = original()
    if not is_ddtree(get_spec().speculative_algorithm):
        return extra
    return max(extra, 2 * window_len() + get_alloc_page_size() - 1)


def plan_slots(
    translator: Any,
    req_pool_indices: torch.Tensor,
    prefix_lens: torch.Tensor,
    host_lens: torch.Tensor | None,
    inputs: RoundInputs,
) -> KVLocPlan:
    """SGLang's translation of the slots that a round reads and writes (mem_cache/kv_loc_plan.py)."""
    return translator.plan(
        req_pool_indices=req_pool_indices,
        seq_lens=prefix_lens,
        seq_lens_cpu=host_lens,
        write_virtual=inputs.node_slots.view(-1),
        read_extent=max(inputs.node_slots.shape[1], inputs.block_slots.shape[1]),
    )


@dataclass(frozen=True, slots=True)
class RoundWindow:
    """Where a round of B requests reads and writes."""

    prefix_lens: torch.Tensor  # [B] int64, committed lengths, without the root
    root_ids: torch.Tensor  # [B] int64
    inputs: RoundInputs  # slots of the nodes and of the block, and the block itself
    host_lens: torch.Tensor | None  # [B] on the host: prefix_lens or, where the scheduler does not keep them, a bound
    plan: KVLocPlan  # SGLang's translation of the slots, made once for all forwards of the round
    ends: RoundEnds  # what stops the requests' paths
    max_path_len: int  # P, the most nodes of a path

    @property
    def total_prefix_len(self) -> int | None:
        """The sum of `host_lens`, None if the host does not know them."""
        return None if self.host_lens is None else int(self.host_lens.sum())

    @property
    def max_prefix_len(self) -> int | None:
        """The greatest of `host_lens`, None if the host does not know them."""
        return None if self.host_lens is None else int(self.host_lens.max())

    @property
    def num_nodes(self) -> int:
        """N of this round."""
        return self.inputs.node_slots.shape[1]

    def narrowed(self, num_nodes: int, translator: Any, req_pool_indices: torch.Tensor) -> RoundWindow:
        """For the first `num_nodes` nodes alone."""
        inputs = replace(self.inputs, node_slots=self.inputs.node_slots[:, :num_nodes].contiguous())
        plan = plan_slots(translator, req_pool_indices, self.prefix_lens, self.host_lens, inputs)
        return replace(self, inputs=inputs, plan=plan)

    @property
    def context_slots(self) -> torch.Tensor:
        """`[B, L]` int64, L = min(P, N): the slots of the longest path, to which the drafter's context is written."""
        length = min(self.max_path_len, self.num_nodes)
        for slots in (self.inputs.node_slots, self.inputs.block_slots):
            if slots.shape[1] == length:
                return slots
        # A block whose root proposes, too, is shorter than the longest path.
        return self.inputs.node_slots[:, :length].contiguous()


@dataclass
class DDTreeDraftInput(DFlashDraftInputV2):
    """What travels between rounds; reserves W slots a window instead of N."""

    def prepare_for_decode(self, batch: ScheduleBatch) -> None:
        """Reserve the slots of the next rounds (the base class reads the window from the configuration)."""
        with get_spec().override(speculative_num_draft_tokens=window_len()):
            super().prepare_for_decode(batch)

    @classmethod
    def carry(
        cls, bonus_tokens: torch.Tensor, new_seq_lens: torch.Tensor, future_indices: torch.Tensor | None = None
    ) -> DDTreeDraftInput:
        """The state after a round: the next root of each request and its committed length.

        `future_indices`: where the relay between overlapped rounds has it; the scheduler says so after a round.
        """
        shape, device = (bonus_tokens.shape[0], 0), bonus_tokens.device
        empty = torch.empty(shape, device=device)
        return cls(
            topk_p=empty,
            topk_index=torch.empty(shape, dtype=torch.int64, device=device),
            bonus_tokens=bonus_tokens,
            new_seq_lens=new_seq_lens,
            hidden_states=empty,
            future_indices=future_indices,
        )
