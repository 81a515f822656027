"""A grammar that is easy to follow by hand, in the ways of xgrammar and of llguidance, and its masks."""

from __future__ import annotations

import torch

VOCABULARY, WORDS, END = 70, 3, 69


class Countdown:
    """Token t may follow while t is less than what is left, and takes t + 1 away; at nothing left, END alone may.

    Like llguidance's, it notes END apart from its state and has no token to take back for it; `strict` is xgrammar's
    way: END ends it, and nothing is accepted behind.
    """

    def __init__(self, left: int, strict: bool) -> None:
        self.left, self.strict = left, strict
        self.finished = self.ended = False
        self.history: list[int] = []

    def accept_token(self, token: int) -> None:
        if self.strict and self.ended:
            raise AssertionError("advanced behind its end")
        if token not in self.allowed():
            raise ValueError(f"token {token} with {self.left} left")
        if token == END and self.strict:
            self.ended = True
        elif token == END:
            self.finished = True
            return
        self.history.append(0 if token == END else token + 1)
        self.left -= self.history[-1]

    def rollback(self, k: int) -> None:
        if self.finished:
            self.finished = False
            k -= 1
        self.ended = False
        for _ in range(k):
            self.left += self.history.pop()

    def is_terminated(self) -> bool:
        return self.ended or self.finished

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        vocab_mask[idx] = packed(self.allowed())

    def allowed(self) -> set[int]:
        return set(range(min(self.left, END))) or {END}


def packed(tokens: set[int]) -> torch.Tensor:
    """A mask row `[WORDS]` that allows these tokens."""
    words = [sum(1 << token % 32 for token in tokens if token // 32 == word) for word in range(WORDS)]
    return torch.tensor([word - (1 << 32) if word >> 31 else word for word in words], dtype=torch.int32)


def open_rows(count: int) -> torch.Tensor:
    """A mask that allows everything."""
    return torch.full((count, WORDS), -1, dtype=torch.int32)
