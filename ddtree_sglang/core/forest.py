"""How M verified nodes are best shared out over a batch: to the M most probable nodes of all requests' trees together.

What a tree is expected to have accepted is the sum of its nodes' path probabilities (paper, Proposition 1), and the sum
adds up over requests. Each request's nodes stand in descending probability, so its share is a prefix of its own tree:
one threshold on the probability decides for all, and no tree is built again.

No server shares nodes out like this. Its forwards are rectangular, so a batch has the width of its widest tree, and the
others may as well use it (`core.width_choice`). `python -m benchmarks forest_gain` counts what that leaves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def share_nodes(path_probs: Floats, total: int) -> Ints:
    """Nodes of each request, `[B]`, its root included: the best use of `total` verified nodes.

    Where nodes are equally probable, the earlier request's come first. Fewer than `total` are shared out where trees
    have no more.

    Args:
        path_probs: `[B, N]` of each node, descending in a row from the root's 1; padding's 0.
        total: M, B or more, for each request verifies its root.

    Raises:
        ValueError: no `[B, N]`, a row that rises, or too few nodes.
    """
    if path_probs.ndim != 2 or not path_probs.size:
        raise ValueError(f"path probabilities must be [B, N], got {path_probs.shape}")
    if (np.diff(path_probs, axis=1) > 0).any():
        raise ValueError("path probabilities must not rise within a request; give trees as they were built")
    batch_size = len(path_probs)
    if total < batch_size:
        raise ValueError(f"each of {batch_size} requests verifies its root, got {total} nodes")
    drafted = path_probs[:, 1:]
    # Stable, so equals keep their order, and a request's share stays a prefix.
    order = np.argsort(-drafted, axis=None, kind="stable")[: total - batch_size]
    taken = np.zeros(drafted.size, dtype=np.bool_)
    taken[order] = True
    shares: Ints = 1 + (taken.reshape(drafted.shape) & (drafted > 0)).sum(1)
    return shares
