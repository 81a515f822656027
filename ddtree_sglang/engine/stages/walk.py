"""The walk from the root on a GPU: one launch of SGLang's own tree kernel, in core's terms."""

from __future__ import annotations

import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.engine.stages.verify_input import IRREGULAR_TREE


def walk_with_engine_kernel(
    built: BuiltTree,
    target_ids: torch.Tensor,  # [B, N] int64, the target's choice after each node, greedy or drawn
    max_path_len: int,  # P
) -> AcceptedPath:
    """Follow the target's choices with `verify_tree_greedy` (kernels/ops/speculative/spec_tree.py).

    The oracle is `core.acceptance.walk_tree`.
    """
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_func

    layout, device = built.layout, target_ids.device
    batch_size, num_nodes = target_ids.shape
    _, accept_index, num_correct_drafts = verify_tree_greedy_func(
        predicts=torch.zeros(batch_size * num_nodes, dtype=torch.int32, device=device),
        accept_index=torch.full((batch_size, max_path_len), -1, dtype=torch.int32, device=device),
        accept_token_num=torch.empty(batch_size, dtype=torch.int32, device=device),
        candidates=built.tree.token_ids,
        retrieve_index=layout.retrieve_index,
        retrieve_next_token=layout.retrieve_next_token,
        retrieve_next_sibling=layout.retrieve_next_sibling,
        target_predict=target_ids,
        topk=IRREGULAR_TREE,
    )
    return _from_kernel(accept_index, num_correct_drafts, target_ids, layout.root_rows)


def _from_kernel(
    accept_index: torch.Tensor,  # [B, P] int32, rows of the flat verify batch, -1 padded
    num_correct_drafts: torch.Tensor,  # [B] int32
    target_ids: torch.Tensor,  # [B, N] int64
    root_rows: torch.Tensor,  # [B, 1] int64
) -> AcceptedPath:
    """The kernel's result in core's terms: nodes within a request, and the tokens emitted."""
    on_path = accept_index >= 0
    index = torch.where(on_path, accept_index - root_rows, -1).to(torch.int64)
    tokens = target_ids.gather(1, index.clamp(min=0)).masked_fill(~on_path, 0)
    num_correct_drafts = num_correct_drafts.to(torch.int64)
    return AcceptedPath(
        accept_index=index,
        num_correct_drafts=num_correct_drafts,
        commit_lens=num_correct_drafts + 1,
        token_ids=tokens,
        bonus_ids=tokens.gather(1, num_correct_drafts.unsqueeze(1)).squeeze(1),
    )
