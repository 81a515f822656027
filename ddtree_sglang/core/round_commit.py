"""What the target's choices make final: the accepted path, and everything that the end of a round reads of it.

The drafter's context is extended by rows of the verify forward: L = min(P, N) of them per request, one per depth of
the longest path that its tree may have. `context_rows` says which; those past the path's end are the root's again, and
`commit_lens` leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.acceptance import AcceptedPath, walk_tree
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.core.tree_layout import check_prefix_lens


@dataclass(frozen=True, slots=True)
class RoundCommit:
    """What a round of B requests makes final; P and L are those of the module's first lines."""

    path: AcceptedPath
    accept_lens: torch.Tensor  # [B] int32, the path's `commit_lens` as SGLang takes them
    new_seq_lens: torch.Tensor  # [B] int64, committed lengths after the round
    context_rows: torch.Tensor  # [B, L] int64, rows of the flat verify batch
    context_positions: torch.Tensor  # [B, L] int64, prefix length + 0, 1, ...


def commit_round(
    tree: DraftTree,
    target_ids: torch.Tensor,  # [B, N] int64, the target's choice of the token after each node
    prefix_lens: torch.Tensor,  # [B] int64, committed lengths before the round
    max_path_len: int,  # P
    ends: RoundEnds | None = None,  # None: nothing ends a request
) -> RoundCommit:
    """Walk the trees and say what the round makes final.

    Raises:
        ValueError: an argument has another shape, dtype or device, or `max_path_len` is below 1.
    """
    check_prefix_lens(prefix_lens, tree.batch_size, tree.device)
    path = walk_tree(tree, target_ids, max_path_len, ends, prefix_lens)
    context_len = min(max_path_len, tree.num_nodes)
    root_rows = torch.arange(tree.batch_size, device=tree.device).unsqueeze(1) * tree.num_nodes
    return RoundCommit(
        path=path,
        accept_lens=path.commit_lens.to(torch.int32),
        new_seq_lens=prefix_lens + path.commit_lens,
        context_rows=root_rows + path.accept_index[:, :context_len].clamp(min=0),
        context_positions=prefix_lens.unsqueeze(1) + torch.arange(context_len, device=tree.device),
    )
