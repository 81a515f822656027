"""Recordings made to order: texts of known tokens, with trees whose walks are known by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ddtree_sglang.simulator.recording import Answer, walked

# 0 ─┬─ 1 (0.6) ─┬─ 2 (0.5) ── 5 (0.4)     spine: 0, 1, 2, 5
#    │           └─ 4 (0.1)
#    └─ 3 (0.3) ──── 6 (0.05)
PARENTS = (-1, 0, 1, 0, 1, 2, 3)
PROBS = (1.0, 0.6, 0.5, 0.3, 0.1, 0.4, 0.05)
SPELLS = {"spine": (1, 2, 5), "sibling": (1, 4), "other": (3, 6), "none": ()}
"""Nodes whose tokens follow the root's in the text."""


def answer(
    walks: Sequence[str], start: int = 10, name: str = "one", trees: Callable[[int], bool] | None = None
) -> Answer:
    """An answer of as many tokens as walks; the tree at each position takes the walk of that name.

    Tokens are the positions themselves, so a node that is to be accepted carries the position after its parent's.
    """
    text = {start + place: 1000 + start + place for place in range(len(walks) + 1)}
    made: dict[int, Any] = {}
    for place, walk in enumerate(walks):
        position = start + place
        if trees is not None and not trees(position):
            continue
        tokens = list(range(len(PARENTS)))
        for depth, node in enumerate(SPELLS[walk], 1):
            tokens[node] = text.get(position + depth, -1)
        made[position] = walked(tokens, PARENTS, PROBS, text, position)
    return Answer(name, start, start + len(walks), made)


class Linear:
    """A round takes 1 s, 0.25 s more with a draft, and 0.05 s a row."""

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        return 1.0 + (0.25 if num_nodes > 1 else 0.0) + 0.05 * batch_size * num_nodes
