"""Which drafted tokens the target accepts: the walk from the root, and the target's own draws for it.

At the current node take the target's own choice for the next token: its argmax when decoding greedily, one
draw from its adjusted distribution (temperature, top-k, top-p, ...) when sampling. If a child carries that
token, go there, else stop. Every emitted token is then the target's own choice under its true prefix, so
nothing is lost and nothing is biased, whatever the drafter proposed (arXiv 2604.12989, section on
verification).

Draws at nodes off the path are thrown away; draws must be independent between nodes given the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddtree_sglang.core.draft_tree import DraftTree


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
) -> AcceptedPath:
    """Follow the target's choices from the root, for at most P nodes.

    Raises:
        ValueError: `target_ids` is not [B, N] int64 on the tree's device, or `max_path_len` is below 1.

    """
    _check_walk(tree, target_ids, max_path_len)
    path = _path_nodes(tree, target_ids, max_path_len)
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


def _path_nodes(tree: DraftTree, target_ids: torch.Tensor, max_path_len: int) -> torch.Tensor:
    """[B, P] int64: the walk's node at each depth, N once it has stopped."""
    batch_size, num_nodes = target_ids.shape
    has_parent = tree.parents >= 0
    parent = tree.parents.clamp(min=0)
    chosen = has_parent & (target_ids.gather(1, parent) == tree.token_ids)
    index = torch.arange(num_nodes, device=tree.device)
    # next_node[b, n] is the child that the target chose at n, or N; N leads to itself. With siblings of equal
    # token, which a valid tree lacks, the first is taken.
    next_node = torch.full((batch_size, num_nodes + 1), num_nodes, dtype=torch.int64, device=tree.device)
    next_node.scatter_reduce_(1, parent, torch.where(chosen, index, num_nodes), "amin")
    node = torch.zeros(batch_size, 1, dtype=torch.int64, device=tree.device)
    path = [node]
    for _ in range(max_path_len - 1):
        path.append(next_node.gather(1, path[-1]))
    return torch.cat(path, dim=1)


def draw_target_tokens(
    probs: torch.Tensor,  # [B, N, V] float32, the target's adjusted distribution after each node
    generator: torch.Generator | None = None,
    uniform: torch.Tensor | None = None,  # [B, N] float32 or float64 in [0, 1]
) -> torch.Tensor:
    """[B, N] int64: one token per node, drawn from its distribution. A token of probability 0 is never
    drawn.

    With `uniform`, by inverting the cumulative distribution in float64, so that a caller with its own
    random numbers (a seed per request, say) gets the same token for the same number. Otherwise by a race of
    exponential clocks from `generator`: V random numbers per node, but no pass over V that depends on the
    one before.

    Raises:
        ValueError: `probs` is not [B, N, V] floating point, or `uniform` is not [B, N], or both sources are
        given.

    """
    if probs.dim() != 3 or not probs.is_floating_point():
        raise ValueError(f"probs must be [B, N, V] floating point, got {tuple(probs.shape)} {probs.dtype}")
    if uniform is None:
        clocks = torch.empty_like(probs, dtype=torch.float32).exponential_(generator=generator)
        # A clock of exactly 0 would turn a probability of 0 into NaN, which argmax takes.
        return torch.argmax(probs / clocks.clamp_(min=torch.finfo(torch.float32).tiny), dim=-1)
    if generator is not None:
        raise ValueError("draw_target_tokens takes one source of randomness, got generator and uniform; drop one")
    if uniform.shape != probs.shape[:2]:
        raise ValueError(f"uniform must be [B, N] = {tuple(probs.shape[:2])}, got {tuple(uniform.shape)}")
    cumulative = torch.cumsum(probs.double(), dim=-1)
    total = cumulative[..., -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniform.double().unsqueeze(-1) * total, right=True)
    # A number of exactly 1, which some generators return, counts as just below it.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last).squeeze(-1)


def _check_walk(tree: DraftTree, target_ids: torch.Tensor, max_path_len: int) -> None:
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
