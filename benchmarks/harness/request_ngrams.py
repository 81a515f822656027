"""What the request's own text says beside the law that servers have (`core.request_ngrams`): a bonus, and a lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddtree_sglang.core.request_ngrams import Floats, Mixture, Word


@dataclass(frozen=True)
class Bonus(Mixture):
    """A candidate that followed the parent's token is `exp(bonus)` times as probable, among the candidates."""

    bonus: float = 0.0

    def row(self, probs: Floats, ranks: dict[int, int], word: Word) -> Floats:
        """As `core.candidates.pair_conditionals` of such scores: the candidates share what they shared before."""
        raised = probs.copy()
        raised[[ranks[token] for token in word.extra if token in ranks]] *= np.exp(np.float32(self.bonus))
        shared: Floats = raised * (probs.sum() / raised.sum())
        return shared


def lookup(tokens: Sequence[int], longest: int, count: int) -> tuple[int, list[int]]:
    """Prompt lookup: what followed the latest earlier occurrence of the longest suffix, and that suffix's length.

    Args:
        tokens: the text up to the root.
        longest: no longer suffix is looked for.
        count: tokens that are proposed, at most.
    """
    best, place, last = 0, 0, len(tokens) - 1
    for end in range(last - 1, -1, -1):
        length = 0
        while length < min(longest, end + 1) and tokens[end - length] == tokens[last - length]:
            length += 1
        if length > best:
            best, place = length, end + 1
            if best == longest:
                break
    return best, list(tokens[place : place + count]) if best else []
