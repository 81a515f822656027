"""The walk from the root: core's tensor version on the host, SGLang's own tree kernel on a GPU.

Both take the target's choice per node, so greedy and sampled requests walk alike.
"""

from __future__ import annotations

import torch

from ddtree_sglang.core.acceptance import AcceptedPath, walk_tree
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput


def walk(
    tree: DraftTree,
    verify_input: DDTreeVerifyInput,
    target_ids: torch.Tensor,  # [B, N] int64
    max_path_len: int,  # P
) -> AcceptedPath:
    """Follow the target's choices; see `core.acceptance.walk_tree`, the oracle of both ways."""
    if target_ids.device.type == "cpu":
        return walk_tree(tree, target_ids, max_path_len)
    return walk_with_engine_kernel(tree, verify_input, target_ids, max_path_len)


def walk_with_engine_kernel(
    tree: DraftTree, verify_input: DDTreeVerifyInput, target_ids: torch.Tensor, max_path_len: int
) -> AcceptedPath:
    """One launch of SGLang's `verify_tree_greedy` (kernels/ops/speculative/spec_tree.py)."""
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_func

    batch_size, num_nodes = target_ids.shape
    device = target_ids.device
    _, accept_index, num_correct_drafts = verify_tree_greedy_func(
        predicts=torch.zeros(batch_size * num_nodes, dtype=torch.int32, device=device),
        accept_index=torch.full((batch_size, max_path_len), -1, dtype=torch.int32, device=device),
        accept_token_num=torch.empty(batch_size, dtype=torch.int32, device=device),
        candidates=tree.token_ids,
        retrieve_index=verify_input.retrieve_index,
        retrieve_next_token=verify_input.retrieve_next_token,
        retrieve_next_sibling=verify_input.retrieve_next_sibling,
        target_predict=target_ids,
        topk=verify_input.tree_topk,
    )
    return _from_kernel(accept_index, num_correct_drafts, target_ids)


def _from_kernel(
    accept_index: torch.Tensor,  # [B, P] int32, rows of the flat verify batch, -1 padded
    num_correct_drafts: torch.Tensor,  # [B] int32
    target_ids: torch.Tensor,  # [B, N] int64
) -> AcceptedPath:
    """The kernel's result in core's terms: nodes within a request, and the tokens emitted."""
    batch_size, num_nodes = target_ids.shape
    first = torch.arange(batch_size, device=target_ids.device).unsqueeze(1) * num_nodes
    on_path = accept_index >= 0
    index = torch.where(on_path, accept_index - first, -1).to(torch.int64)
    tokens = target_ids.gather(1, index.clamp(min=0)).masked_fill(~on_path, 0)
    num_correct_drafts = num_correct_drafts.to(torch.int64)
    return AcceptedPath(
        accept_index=index,
        num_correct_drafts=num_correct_drafts,
        commit_lens=num_correct_drafts + 1,
        token_ids=tokens,
        bonus_ids=tokens.gather(1, num_correct_drafts.unsqueeze(1)).squeeze(1),
    )
