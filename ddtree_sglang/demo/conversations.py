"""Conversations as token ids, and their split into training and held-out parts.

File format (NumPy `.npz`): `tokens` [total] integer ids, `offsets` [n+1] int64, `answer_start` [n] int32, the
index of the first answer token within its conversation. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Conversations:
    """Token ids of n conversations, concatenated."""

    tokens: Tensor  # [total] int64
    offsets: Tensor  # [n+1] int64
    answer_start: Tensor  # [n] int64

    def __len__(self) -> int:
        return len(self.answer_start)

    def token_ids(self, index: int) -> Tensor:
        """Ids [T] int64 of one conversation."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def prompt_digest(self, index: int) -> bytes:
        """SHA-256 over the ids before the answer: equal prompts have equal digests."""
        prompt = self.token_ids(index)[: int(self.answer_start[index])]
        return hashlib.sha256(prompt.numpy().tobytes()).digest()

    def head(self, count: int) -> Conversations:
        """The first `count` conversations."""
        offsets = self.offsets[: count + 1]
        return Conversations(self.tokens[: int(offsets[-1])], offsets, self.answer_start[:count])

    def digest(self) -> str:
        """SHA-256 over everything, to tell whether a cache belongs to these conversations."""
        parts = (self.tokens, self.offsets, self.answer_start)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def load_conversations(path: Path) -> Conversations:
    """Read and check an `.npz` file of conversations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an array is missing, or offsets and answers do not describe the tokens.
    """
    with np.load(path) as arrays:
        missing = {"tokens", "offsets", "answer_start"} - set(arrays.files)
        if missing:
            raise ValueError(
                f"{path} must hold the arrays tokens, offsets and answer_start, {sorted(missing)} missing."
            )
        tokens, offsets, start = (
            torch.from_numpy(arrays[k].astype(np.int64)) for k in ("tokens", "offsets", "answer_start")
        )
    lengths = offsets.diff()
    consistent = len(offsets) == len(start) + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(tokens)
    if not consistent or bool((start < 1).any()) or bool((start > lengths).any()):
        raise ValueError(f"{path}: offsets and answer_start must describe the {len(tokens)} tokens: rewrite it.")
    return Conversations(tokens, offsets, start)


def split_held_out(conversations: Conversations, percent: int) -> tuple[list[int], list[int]]:
    """Indices (training, held out): the side is a function of the prompt alone, so none is on both.

    Raises:
        ValueError: fewer than 8 conversations would be held out, too few to measure anything.
    """
    train: list[int] = []
    held_out: list[int] = []
    for index in range(len(conversations)):
        digest = conversations.prompt_digest(index)
        side = held_out if int.from_bytes(digest[:4], "big") % 100 < percent else train
        side.append(index)
    if len(held_out) < 8 or not train:
        raise ValueError(
            f"the held-out part needs at least 8 conversations, got {len(held_out)} of {len(conversations)} "
            f"at {percent} %: add conversations or raise --held-out-percent."
        )
    return train, held_out
