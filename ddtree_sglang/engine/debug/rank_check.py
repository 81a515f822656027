"""Debug check that tensor-parallel ranks work on the same trees; it reads back to the host, so it is off by default.

Ranks never exchange trees: each builds its own from candidates that were gathered on all of them, so equal trees are
an outcome, not a rule that something enforces. If they ever differed, ranks would verify different tokens with one
forward, and the answer would be wrong without an error.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.exceptions import DDTreeError


class RanksDisagreeError(DDTreeError):
    """Two ranks hold different trees of one round."""


def tree_digest(built: BuiltTree) -> torch.Tensor:
    """`[B, 4]` int64 on the host: SHA-256 of each request's tokens, parents and positions, 32 bytes as four numbers."""
    rows = torch.cat([built.tree.token_ids, built.tree.parents, built.layout.positions], dim=1).cpu().contiguous()
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in rows]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64).view(len(rows), 4)


def require_equal_trees(built: BuiltTree, tp_group: Any) -> None:
    """Compare this rank's trees with every other's.

    Args:
        tp_group: SGLang's group coordinator of the target.

    Raises:
        RanksDisagreeError: on every rank, with the first request and the ranks that differ from rank 0.
    """
    mine = tree_digest(built).to(built.tree.device)
    ranks = tp_group.all_gather(mine, dim=0).view(int(tp_group.world_size), *mine.shape)
    differs = (ranks != ranks[0]).any(-1)  # [ranks, B]
    if bool(differs.any()):
        request = int(differs.any(0).nonzero()[0])
        others = differs[:, request].nonzero()[:, 0].tolist()
        raise RanksDisagreeError(
            f"every rank must build the same draft tree; for request {request} of the batch ranks {others} differ from "
            "rank 0. Please report this with the model and the launch command."
        )
