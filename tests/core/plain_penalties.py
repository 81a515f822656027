"""Plain decoding with penalties, one token after the other, as SGLang's penalizers do it; and a toy model to decode.

The sums are those of sampling/penaltylib, applied as sampling_batch_info.py applies them (`update_penalties`,
`_apply_pre_grammar_logits_transforms`): tests/engine holds this file to the engine's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

V = 13


class Asked(NamedTuple):
    """A request's penalties; `ends` may not come before `min_len` tokens."""

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    min_len: int = 0
    ends: tuple[int, ...] = ()


def random_asked(generator: torch.Generator) -> Asked:
    """Each of the four on in most requests, penalties of either sign and of few decimals, as users write them."""

    def number(low: float, high: float) -> float:
        value = float(torch.empty(1).uniform_(low, high, generator=generator))
        return round(value, 2)

    def rarely() -> bool:
        return bool(torch.rand(1, generator=generator) < 0.25)

    return Asked(
        0.0 if rarely() else number(-2, 2),
        0.0 if rarely() else number(-2, 2),
        1.0 if rarely() else number(0.5, 2),
        0 if rarely() else int(torch.randint(1, 9, (1,), generator=generator)),
        tuple({int(token) for token in torch.randint(0, V, (2,), generator=generator)}),
    )


@dataclass
class PlainPenalties:
    """One request's sums and its length, in float32."""

    asked: Asked
    vocab_size: int = V
    length: int = 0
    sums: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        zeros = torch.zeros(self.vocab_size)
        self.sums = {"frequency": zeros, "presence": zeros.clone(), "scaling": torch.ones(self.vocab_size)}

    def count(self, token: int) -> None:
        """One more token was emitted."""
        self.sums["frequency"][token] += torch.tensor(self.asked.frequency)
        self.sums["presence"][token] = self.asked.presence
        self.sums["scaling"][token] = self.asked.repetition
        self.length += 1

    def adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """`[V]` logits with the penalties of what was emitted."""
        added = torch.zeros(self.vocab_size)
        added.sub_(self.sums["frequency"])
        added.sub_(self.sums["presence"])
        if self.length < self.asked.min_len:
            added[list(self.asked.ends)] += -torch.inf
        changed = logits.clone().add_(added)
        scaling = self.sums["scaling"]
        return torch.where(changed < 0, changed * scaling, changed / scaling).to(logits.dtype)


@dataclass(frozen=True)
class ToyModel:
    """Logits that depend on the last two tokens; close to each other, so that penalties decide much."""

    by_last: torch.Tensor  # [V, V]
    by_second_last: torch.Tensor  # [V, V]

    @classmethod
    def of_seed(cls, seed: int) -> ToyModel:
        """Random tables."""
        generator = torch.Generator().manual_seed(seed)
        return cls(*(torch.randn(V, V, generator=generator) for _ in range(2)))

    def logits(self, context: Sequence[int]) -> torch.Tensor:
        """`[V]` float32 after at least two tokens."""
        return self.by_last[context[-1]] + self.by_second_last[context[-2]]


def decode_plainly(model: ToyModel, prompt: Sequence[int], asked: Asked, num_tokens: int) -> list[int]:
    """The reference: greedy, one token per forward."""
    penalties = PlainPenalties(asked)
    answer: list[int] = []
    for _ in range(num_tokens):
        answer.append(int(penalties.adjusted(model.logits([*prompt, *answer])).argmax()))
        penalties.count(answer[-1])
    return answer
