"""How many nodes of each request a round should verify: as many as bring the most tokens per second.

What a tree is expected to have accepted is the sum of its nodes' path probabilities (paper, Proposition 1), and the sum
adds up over requests. Nodes stand in descending order of the drafter's probability, so a tree cut after n nodes is the
best one of n, and nothing is built again. Forwards are rectangular: every request has as many nodes as the others.

`best_width` looks at every width and does not stop at the first drop, as a rule for convex costs may (arXiv
2606.01813): captured widths and vector lengths make cliffs, behind which more nodes pay again. A width of 1 is plain
decoding, and takes part.
"""

from __future__ import annotations

import numpy as np

from ddtree_sglang.core.round_loops import Floats, Ints, most_per_second, sum_to_widths


def drafted_tokens(
    probs: Floats,  # [B, N] that each node is accepted; the root's 1, padding's 0
    widths: Ints,  # [W] ascending, from 1 on; a width beyond N has N's value
) -> Floats:
    """`[B, W]`: drafted tokens that each request is expected to have accepted, by the width of the round."""
    drafted = np.empty((len(probs), len(widths)))
    sum_to_widths(probs, widths, drafted)
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
    return int(most_per_second(tokens, seconds))


def last_within(factor: float, seconds: Floats, best: int) -> int:
    """Index of the last of `[W]` seconds that is at most `factor` times that of the best."""
    return int(np.flatnonzero(seconds <= factor * seconds[best])[-1])
