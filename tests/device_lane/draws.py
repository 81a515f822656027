"""A token drawn from logits as the engine draws it for a seed: by noise that is hashed from seed, position and rank."""

from __future__ import annotations

from typing import Protocol

import torch


class Drawn(Protocol):
    """What draws hang on besides logits."""

    @property
    def temperature(self) -> float:
        """0 for the best token."""

    @property
    def top_k(self) -> int:
        """How many of the best may be drawn."""

    @property
    def seed(self) -> int:
        """Of the noise."""


def choose(logits: torch.Tensor, asked: Drawn, position: int) -> tuple[int, float]:
    """The token that follows, and its lead; `position` is that of the last token that was read.

    A draw is SGLang's `top_k_top_p_min_p_sampling_from_probs_torch` with a seed (layers/sampler.py): Gumbel noise,
    hashed from seed, position and rank. So the ranks must be certain as well, and the lead is the least of both.
    """
    if asked.temperature == 0.0 or asked.top_k == 1:
        best = logits.topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1])
    scaled, ids = (logits / asked.temperature).sort(descending=True)
    noise = seeded_noise(asked.seed, position, len(logits))
    best = (scaled.log_softmax(-1).double() + noise)[: asked.top_k].topk(2)
    between_ranks = (scaled[: asked.top_k] - scaled[1 : asked.top_k + 1]).min()
    return int(ids[best.indices[0]]), float(torch.minimum(best.values[0] - best.values[1], between_ranks))


def is_near_the_border(logits: torch.Tensor, asked: Drawn) -> bool:
    """Whether rounding could change which tokens are the `top_k` best."""
    best = logits.topk(asked.top_k + 1).values
    return bool(best[-2] - best[-1] < BORDER)


BORDER = 1e-3
"""In logits, which rounding of float32 moves by some 1e-5."""


def seeded_noise(seed: int, position: int, count: int) -> torch.Tensor:
    """Gumbel noise `[count]` float64 of SGLang's `multinomial_with_seed` (layers/sampler.py)."""
    words = (seed & _WORD, seed >> 32 & _WORD, position)
    hashed = torch.tensor([_murmur3(*words, column) for column in range(count)], dtype=torch.float64)
    return -(-(hashed / _WORD).log().clamp(max=-(2.0**-32))).log()


_WORD = 0xFFFFFFFF


def _murmur3(*words: int) -> int:
    """MurmurHash3 of 32-bit words, seed 0; SGLang says 16 bytes (kernels/ops/sampling/murmur_hash.py)."""
    state = 0
    for word in words:
        word = _rotate(word * 0xCC9E2D51 & _WORD, 15) * 0x1B873593 & _WORD
        state = _rotate(state ^ word, 13) * 5 + 0xE6546B64 & _WORD
    state ^= 16
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & _WORD
    return state ^ state >> 16


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _WORD
