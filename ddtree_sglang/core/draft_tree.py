"""The draft tree as plain tensors: what the drafter proposes for one round, for a batch of requests.

Dimension letters, for the whole package:

    B  requests in the batch                 H  hidden size
    N  nodes per request, root included      P  longest root-to-leaf path in nodes, D + 1, which is also the
    D  draft depth (drafted positions)          number of tokens of a draft block (the root and D masks)
    K  candidates per depth                  W  slots of a request's KV window, max(N, P)
    V  vocabulary                            M  rows of any other number

    attention: Q  queries per request        L  keys per request       d  head size
    training:  C  conversations              T  tokens of each         A  anchors of each
               F  feature layers of the target                         S  P, of a training block

A size that occurs in one module alone is spelled out: `[B, slots]`.

The tree knows nothing of KV slots, masks or engines. Callers may rely on: node 0 is the root; a parent
comes before its children; real nodes stand in descending path log-probability and before all padding;
padding has no parent, so no walk that starts at the root reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DraftTree:
    """B draft trees of N nodes each, all tensors on one device.

    `num_nodes` counts the root; the paper's budget is `num_nodes - 1`.
    """

    token_ids: torch.Tensor  # [B, N] int64, the root's is the last committed (bonus) token; 0 at padding
    parents: torch.Tensor  # [B, N] int64, index into the same row; -1 at the root and at padding
    depths: torch.Tensor  # [B, N] int64, 0 at the root and at padding
    logprobs: torch.Tensor  # [B, N] float32, of the whole path; 0 at the root, -inf at padding

    @property
    def batch_size(self) -> int:
        """B."""
        return self.token_ids.shape[0]

    @property
    def num_nodes(self) -> int:
        """N, root and padding included."""
        return self.token_ids.shape[1]

    @property
    def device(self) -> torch.device:
        """The device that holds all four tensors."""
        return self.token_ids.device

    @property
    def is_real(self) -> torch.Tensor:
        """`[B, N]` bool: the root and every node with a parent; False at padding."""
        real = self.parents >= 0
        real[:, 0] = True
        return real

    def first_nodes(self, num_nodes: int) -> DraftTree:
        """Views of the first nodes of each tree, which are the best tree of that many."""
        return DraftTree(*(part[:, :num_nodes] for part in (self.token_ids, self.parents, self.depths, self.logprobs)))

    def check_invariants(self) -> None:
        """Raise AssertionError if the tree breaks a promise of the module docstring.

        Reads values back to the host, so it belongs in tests and debugging, never in a round.
        """
        _check_types(self)
        index = torch.arange(self.num_nodes, device=self.device)
        real = self.is_real
        drafted = real & (index > 0)
        padding = ~real
        assert bool((self.parents[:, 0] == -1).all()), "the root has no parent"
        assert bool((self.depths[:, 0] == 0).all()), "the root has depth 0"
        assert bool((self.logprobs[:, 0] == 0).all()), "the root has log-probability 0"
        assert bool((~drafted | (self.parents < index)).all()), "a parent comes before its children"
        assert bool((real[:, 1:] <= real[:, :-1]).all()), "padding comes after every real node"
        assert bool((self.logprobs[:, 1:] <= self.logprobs[:, :-1]).all()), "nodes in descending log-probability"
        assert bool(((self.logprobs > -torch.inf) == real).all()), "-inf exactly at padding"
        assert bool((self.depths[padding] == 0).all()), "padding has depth 0"
        parent_rows = self.parents.clamp(min=0)
        assert bool(real.gather(1, parent_rows)[drafted].all()), "every ancestor of a node is in the tree"
        parent_depths = self.depths.gather(1, parent_rows)
        assert bool((self.depths == parent_depths + 1)[drafted].all()), "a child is one deeper than its parent"
        _check_siblings_differ(self)


def _check_types(tree: DraftTree) -> None:
    """Assert the shapes, dtypes and the common device of the four tensors."""
    shape = (tree.batch_size, tree.num_nodes)
    for name, dtype in (
        ("token_ids", torch.int64),
        ("parents", torch.int64),
        ("depths", torch.int64),
        ("logprobs", torch.float32),
    ):
        tensor: torch.Tensor = getattr(tree, name)
        assert tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}, not {shape}"
        assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}"
        assert tensor.device == tree.device, f"{name} is on {tensor.device}, not {tree.device}"


def _check_siblings_differ(tree: DraftTree) -> None:
    """Assert that no node has two children with the same token: the walk could not tell them apart."""
    for parents, token_ids in zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True):
        edges = [(parent, token) for parent, token in zip(parents, token_ids, strict=True) if parent >= 0]
        assert len(edges) == len(set(edges)), "siblings carry different tokens"
