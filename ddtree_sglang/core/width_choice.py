"""How many nodes of each request a round should verify: as many as bring the most tokens per second.

What a tree is expected to have accepted is the sum of its nodes' path probabilities (paper, Proposition 1), and the sum
adds up over requests. Nodes stand in descending order of the drafter's probability, so a tree cut after n nodes is the
best one of n, and nothing is built again. Forwards are rectangular: every request has as many nodes as the others.

`best_width` looks at every width and does not stop at the first drop, as a rule for convex costs may (arXiv
2606.01813): captured widths and vector lengths make cliffs, behind which more nodes pay again. A width of 1 is plain
decoding, and takes part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def drafted_tokens(
    probs: Floats,  # [B, N] that each node is accepted; the root's 1, padding's 0
    widths: Sequence[int],  # [W] ascending, from 1 on; a width beyond N has N's value
) -> Floats:
    """`[B, W]`: drafted tokens that each request is expected to have accepted, by the width of the round."""
    drafted: Floats = probs.cumsum(1)[:, np.minimum(widths, probs.shape[1]) - 1] - probs[:, :1]
    return drafted


def best_width(tokens: Floats, seconds: Floats) -> int:
    """Index of the most tokens per second; of equals the first.

    Args:
        tokens: `[W]` that a round emits, all requests together.
        seconds: `[W]` that it takes. One that is 0, below, or no number is no measurement, and never wins.

    Raises:
        ValueError: the two are not of one length, or empty.
    """
    if tokens.shape != seconds.shape or tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"tokens and seconds must be [W] both, got {tokens.shape} and {seconds.shape}")
    if seconds.min() > 0:
        return int((tokens / seconds).argmax())
    valid = seconds > 0
    return int(np.where(valid, tokens / np.where(valid, seconds, 1.0), 0.0).argmax())
