"""Where two greedy answers part, and whether the target itself was undecided there.

Pure comparison; the log-probabilities come from a callable, so that no server is needed to test it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEAR_TIE = 1e-4
"""Two tokens within this log-probability are a tie that rounding decides: reported, not a mismatch."""

Logprobs = Callable[[Sequence[int], Sequence[int]], dict[int, float]]


@dataclass(frozen=True)
class Divergence:
    """The first difference of one prompt. A token is None where that answer has ended.

    `margin` is the target's log-probability of the plain token minus that of the other one, None when a side
    ended.
    """

    prompt: str
    position: int
    plain_token: int | None
    other_token: int | None
    margin: float | None
    tolerance: float = NEAR_TIE

    @property
    def is_near_tie(self) -> bool:
        """True when the target gives both tokens the same probability up to rounding."""
        return self.margin is not None and abs(self.margin) <= self.tolerance


def find_divergence(
    prompt: str,
    input_ids: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    logprobs: Logprobs,
    tolerance: float = NEAR_TIE,
) -> Divergence | None:
    """None when the answers are equal; else the first difference with its margin.

    `logprobs(prefix_ids, tokens)` gives the target's next-token log-probabilities; up to `tolerance` apart they tie.
    """
    if tuple(plain) == tuple(other):
        return None
    pairs = zip(plain, other, strict=False)
    shared = min(len(plain), len(other))
    position = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), shared)
    plain_token = plain[position] if position < len(plain) else None
    other_token = other[position] if position < len(other) else None
    margin = None
    if plain_token is not None and other_token is not None:
        values = logprobs([*input_ids, *plain[:position]], [plain_token, other_token])
        margin = values[plain_token] - values[other_token]
    return Divergence(prompt, position, plain_token, other_token, margin, tolerance)
