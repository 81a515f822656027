"""Conversations as token ids, and their split into training and held-out parts.

File format (NumPy `.npz`): `tokens` [total] integer ids, `offsets` [n+1] int64, `answer_start` [n] int32, the
index of the first answer token within its conversation, and where it is known `sampled` [n] int8: 1 for an answer at
temperature 1, 0 for a greedy one, -1 for one whose sampling is unknown.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.training.described import described


@dataclass(frozen=True)
class Conversations:
    """Token ids of n conversations, concatenated."""

    tokens: Tensor  # [total] int64
    offsets: Tensor  # [n+1] int64
    answer_start: Tensor  # [n] int64
    sampled: Tensor | None = None  # [n] int64: 1 sampled, 0 greedy, -1 unknown; None: all unknown

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
        sampled = None if self.sampled is None else self.sampled[:count]
        return Conversations(self.tokens[: int(offsets[-1])], offsets, self.answer_start[:count], sampled)

    def chosen(self, indices: list[int]) -> Conversations:
        """The conversations of these indices, in their order."""
        rows = [self.token_ids(index) for index in indices]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        sampled = None if self.sampled is None else self.sampled[indices]
        return Conversations(torch.cat(rows), offsets, self.answer_start[indices], sampled)

    def digest(self) -> str:
        """SHA-256 over tokens, offsets and answer starts, by which a feature cache knows its text."""
        parts = (self.tokens, self.offsets, self.answer_start)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class HeldOutConfig:
    """Which conversations are kept from training, and how many of them are scored."""

    percent: int = described(5, "percent of the conversations that are never trained on", flag="--held-out-percent")
    limit: int = described(0, "score the first so many of them; 0 scores all", flag="--held-out-limit")


def load_conversations(path: Path) -> Conversations:
    """Read and check an `.npz` file of conversations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, an array is missing, or offsets and answers do not describe the tokens.
    """
    arrays = _read_arrays(path)
    missing = {"tokens", "offsets", "answer_start"} - set(arrays)
    if missing:
        raise ValueError(f"{path} must hold the arrays tokens, offsets and answer_start, {sorted(missing)} missing.")
    tokens, offsets, start = (arrays[name] for name in ("tokens", "offsets", "answer_start"))
    sampled = arrays.get("sampled")
    if sampled is not None and len(sampled) != len(start):
        raise ValueError(f"{path}: sampled must have one entry per conversation, got {len(sampled)} of {len(start)}.")
    lengths = offsets.diff()
    consistent = len(offsets) == len(start) + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(tokens)
    if not consistent or bool((start < 1).any()) or bool((start > lengths).any()):
        raise ValueError(f"{path}: offsets and answer_start must describe the {len(tokens)} tokens: rewrite it.")
    return Conversations(tokens, offsets, start, sampled)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a conversation file that are there, as int64."""
    try:
        with np.load(path) as arrays:
            names = [name for name in arrays.files if name in ("tokens", "offsets", "answer_start", "sampled")]
            return {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} must be an .npz file of conversations, it is damaged or something else ({error}): write it again."
        ) from error


def split_held_out(conversations: Conversations, percent: int) -> tuple[list[int], list[int]]:
    """Indices of the training part and of the held-out part.

    The prompt alone decides the part, so no prompt is in both.

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
