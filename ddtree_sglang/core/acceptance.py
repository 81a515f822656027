"""Which drafted tokens the target accepts: the walk from the root.

At the current node take the target's own choice for the next token: its argmax when decoding greedily, one
draw from its adjusted distribution (temperature, top-k, top-p, ...) when sampling. If a child carries that
token, go there, else stop. Every emitted token is then the target's own choice under its true prefix, so
nothing is lost and nothing is biased, whatever the drafter proposed (arXiv 2604.12989, section on
verification).

Choices at nodes off the path are thrown away; draws must be independent between nodes given the tree.

A path is cut where plain decoding would have ended the request, and at the nodes that a request allows itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.round_ends import RoundEnds, check_ends


@dataclass(frozen=True)
class AcceptedPath:
    """What one round commits, for B requests; P is the longest path in nodes, root included."""

    accept_index: torch.Tensor  # [B, P] int64, nodes on the path within the request, root first; then -1
    num_correct_drafts: torch.Tensor  # [B] int64, drafted tokens accepted (no bonus), 0 to P - 1
    commit_lens: torch.Tensor  # [B] int64, num_correct_drafts + 1: tokens emitted, and KV rows made final
    token_ids: torch.Tensor  # [B, P] int64, tokens emitted: target's choice at each node of the path; then 0
    bonus_ids: torch.Tensor  # [B] int64, the last of them: the next round's root


def walk_tree(
    tree: DraftTree,
    target_ids: torch.Tensor,  # [B, N] int64, the target's choice of the token after each node
    max_path_len: int,  # P
    ends: RoundEnds | None = None,  # None: nothing ends a request
    prefix_lens: torch.Tensor | None = None,  # [B] int64, committed lengths before the round; None: all 0
) -> AcceptedPath:
    """Follow the target's choices from the root, for at most P nodes, to the first token that ends the request.

    A tree's nodes come in order of descending path probability, parents first, so a request that allows itself n nodes
    is walked in the best tree of n.

    Raises:
        ValueError: `target_ids` is not `[B, N]` int64 on the tree's device, `max_path_len` is below 1, or `ends` are
            those of another batch.
    """
    check_walk(tree, target_ids, max_path_len)
    ends = RoundEnds.none(tree.batch_size, tree.device) if ends is None else ends
    check_ends(ends, tree.batch_size, tree.device)
    path = _path_nodes(tree, target_ids, max_path_len, ends)
    tokens_left = ends.limit_lens if prefix_lens is None else ends.limit_lens - prefix_lens
    # A round of a request that has ended, which overlap scheduling starts before it knows, keeps its root.
    depth = torch.arange(max_path_len, device=tree.device)
    path = path.masked_fill((depth >= tokens_left.unsqueeze(1)) & (depth > 0), tree.num_nodes)
    stopped = path == tree.num_nodes
    commit_lens = max_path_len - stopped.sum(1)
    safe_path = path.masked_fill(stopped, 0)
    token_ids = target_ids.gather(1, safe_path)
    num_correct_drafts = commit_lens - 1
    return AcceptedPath(
        accept_index=path.masked_fill(stopped, -1),
        num_correct_drafts=num_correct_drafts,
        commit_lens=commit_lens,
        token_ids=token_ids.masked_fill(stopped, 0),
        bonus_ids=token_ids.gather(1, num_correct_drafts.unsqueeze(1)).squeeze(1),
    )


def _path_nodes(tree: DraftTree, target_ids: torch.Tensor, max_path_len: int, ends: RoundEnds) -> torch.Tensor:
    """`[B, P]` int64: the walk's node at each depth, N once it has stopped."""
    batch_size, num_nodes = target_ids.shape
    has_parent = tree.parents >= 0
    parent = tree.parents.clamp(min=0)
    chosen = has_parent & (target_ids.gather(1, parent) == tree.token_ids)
    index = torch.arange(num_nodes, device=tree.device)
    is_end = (tree.token_ids.unsqueeze(2) == ends.end_ids.unsqueeze(1)).any(2)
    chosen = chosen & ~is_end & (index < ends.node_limits.unsqueeze(1))
    # next_node[b, n] is the child that the target chose at n, or N; N leads to itself. With siblings of equal
    # token, which a valid tree lacks, the first is taken.
    next_node = torch.full((batch_size, num_nodes + 1), num_nodes, dtype=torch.int64, device=tree.device)
    next_node.scatter_reduce_(1, parent, torch.where(chosen, index, num_nodes), "amin")
    node = torch.zeros(batch_size, 1, dtype=torch.int64, device=tree.device)
    path = [node]
    for _ in range(max_path_len - 1):
        path.append(next_node.gather(1, path[-1]))
    return torch.cat(path, dim=1)


def check_walk(tree: DraftTree, target_ids: torch.Tensor, max_path_len: int) -> None:
    """Check shape, dtype and device of the target's choices; never their values."""
    if target_ids.shape != tree.token_ids.shape:
        raise ValueError(
            f"target_ids must be [B, N] = {tuple(tree.token_ids.shape)}, got {tuple(target_ids.shape)}; "
            "one choice per node of the tree"
        )
    if target_ids.dtype != torch.int64:
        raise ValueError(f"target_ids must be torch.int64, got {target_ids.dtype}; convert it first")
    if target_ids.device != tree.device:
        raise ValueError(f"target_ids must be on {tree.device} like the tree, got {target_ids.device}")
    if max_path_len < 1:
        raise ValueError(f"max_path_len must be at least 1 (the root), got {max_path_len}; use draft depth + 1")
