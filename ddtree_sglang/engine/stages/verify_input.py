"""A draft tree in the form that SGLang's tree verify takes: `EagleVerifyInput`, with an irregular tree.

Two counts of nodes meet here: `draft_token_num` is N, those of the verify forward; `max_tree_depth` is P = D + 1,
those of the longest path, which bounds what a round can accept (speculative/eagle_info.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.kv_loc_plan import KVLocPlan
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.dflash_info import DFlashVerifyInput
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.engine.spec import verify_topk

IRREGULAR_TREE = -1
"""SGLang's value for "no fixed branching factor" in its tree kernels."""


@dataclass
class DDTreeVerifyInput(EagleVerifyInput):
    """`EagleVerifyInput` that also carries the ancestor mask alone, which the CPU's attention reads."""

    ancestor_mask: torch.Tensor | None = None  # [B, N, N] bool, True = may attend; None on an accelerator

    @property
    def tree_topk(self) -> int:
        """Best-first trees have no fixed branching."""
        return IRREGULAR_TREE

    def generate_attn_arg_prefill(self, **arguments: Any) -> tuple[torch.Tensor, ...]:
        """FlashInfer's plan of a verify (layers/attention/flashinfer_backend.py): KV indices, two indptr, the mask.

        EAGLE's own plan reads the mask's size and would fail on a chain of one node, which has no mask. DFLASH's plan
        (speculative/dflash_info.py), which is taken there, hands on that there is none. FlashInfer's graphs for one
        node are captured without a mask, too.
        """
        if self.custom_mask is not None:
            return tuple(super().generate_attn_arg_prefill(**arguments))
        chain = DFlashVerifyInput(self.draft_token, self.positions, self.draft_token_num)
        return tuple(chain.generate_attn_arg_prefill(**arguments))


class IdleVerifyInput(DDTreeVerifyInput):
    """What a group without a request takes part in the other groups' verify with: no node.

    For a target with recurrent layers SGLang would make a verify of padding of it, whose nodes have no links, unless it
    is a draft's input (model_executor/forward_batch_info.py, prepare_mlp_sync_batch). As one it stays idle, so that no
    layer attends, as it does for other targets.
    """

    hidden_states: None = None

    def is_draft_input(self) -> bool:
        """True: nothing is to be verified here."""
        return True

    def pad_batch(self, _pad: Any, _batch_size: int) -> None:
        """There is nothing to pad."""


@dataclass(frozen=True)
class VerifyMask:
    """A tree's mask in the forms that attention backends read; True = may attend."""

    custom_mask: torch.Tensor | None  # 1-D bool, what SGLang calls by this name; None for a chain
    ancestor_mask: torch.Tensor | None  # [B, N, N] bool, what the CPU's attention reads; None on an accelerator


def make_verify_input(
    built: BuiltTree,
    max_path_len: int,  # P
    mask: VerifyMask,
    out_cache_loc: torch.Tensor,  # [B * N] int64, slots that the nodes' keys and values are written to
    kv_loc_plan: KVLocPlan,  # SGLang's translation of these slots
) -> DDTreeVerifyInput:
    """Assemble the verify input of B trees of N nodes."""
    tree, layout = built.tree, built.layout
    return DDTreeVerifyInput(
        draft_token=tree.token_ids.flatten(),
        custom_mask=mask.custom_mask,
        positions=layout.positions.flatten(),
        retrieve_index=layout.retrieve_index,
        retrieve_next_token=layout.retrieve_next_token,
        retrieve_next_sibling=layout.retrieve_next_sibling,
        retrieve_cum_len=None,
        spec_steps=max_path_len - 1,
        topk=verify_topk(tree.num_nodes),
        draft_token_num=tree.num_nodes,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        seq_lens_sum=None,
        seq_lens_cpu=None,
        prepared_out_cache_loc=out_cache_loc,
        kv_loc_plan=kv_loc_plan,
        ancestor_mask=mask.ancestor_mask,
    )
