"""Conversations in waves: as many as the device holds, all from position 0, a token of each at every step.

A user turn is drawn at a temperature of its own, up to an end token or its own most tokens. The template's text up to
the answer follows, and then the answer: greedy, and in a share of the rows at temperature 1. Nothing sorts the
vocabulary. Knows the target as a function of tokens and a position.
Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.training.data.held_out_prompts import HELD_OUT_PROMPTS
from ddtree_sglang.training.data.openings import OPENINGS
from ddtree_sglang.training.data.self_generation import turn_texts

Step = Callable[[Tensor, int], Tensor]
"""Logits [B, V] after the tokens [B] at a position, asked position by position from 0."""

STEPS_BETWEEN_LOOKS = 32
"""Whether every row has ended is asked that often, as the answer waits for the device."""

SHORTEST_ANSWER = 2


@dataclass(frozen=True)
class WaveShape:
    """How many conversations a wave writes, and how long they may be."""

    rows: int
    length: int  # tokens of a conversation, at most
    max_user_tokens: int  # that the target adds to the first words, at most
    sampled_rows: int  # answered at temperature 1

    def longer(self) -> WaveShape:
        """Half the rows of twice the length, in the same memory, with user turns of up to four times the tokens."""
        return WaveShape(self.rows // 2, 2 * self.length, 4 * self.max_user_tokens, self.sampled_rows // 2)


@dataclass(frozen=True)
class Wave:
    """Conversations, in an order that says nothing of how they were answered."""

    rows: list[np.ndarray]  # [T] int64 ids each
    starts: list[int]  # index of the first token of each answer
    sampled: list[int]  # 1 for an answer at temperature 1, 0 for a greedy one

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.rows)) - sum(self.starts)


class KnownPrompts:
    """Prompts that must not be written: those that drafters are scored on, and those that were written before."""

    def __init__(self, tokenizer: Any) -> None:
        opening, closing = turn_texts(tokenizer)
        self._tokenizer = tokenizer
        texts = [opening + text + closing for kind in HELD_OUT_PROMPTS.values() for text in kind]
        # Compared as text: the target may write one with other tokens than the tokenizer has for it.
        self._scored = set(self._texts([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]))
        self._written: set[bytes] = set()

    def scored(self, prompts: Sequence[np.ndarray]) -> list[bool]:
        """Of each prompt, whether drafters are scored on it."""
        return [text in self._scored for text in self._texts([prompt.tolist() for prompt in prompts])]

    def fresh(self, prompts: Sequence[np.ndarray]) -> list[bool]:
        """Of each prompt, whether it may be written; those that may are known from now on."""
        found = []
        for prompt, scored in zip(prompts, self.scored(prompts), strict=True):
            digest = hashlib.sha256(prompt.astype(np.int64).tobytes()).digest()[:16]
            found.append(not scored and digest not in self._written)
            self._written.add(digest)
        return found

    def _texts(self, prompts: list[list[int]]) -> list[str]:
        return [text.strip() for text in self._tokenizer.batch_decode(prompts)] if prompts else []


class WaveWriter:
    """Writes waves, each other than the ones before."""

    def __init__(
        self,
        tokenizer: Any,
        end_ids: tuple[int, ...],
        device: torch.device,
        temperatures: tuple[float, float],
        known: KnownPrompts,
        seed: int,
    ) -> None:
        """`temperatures` are the lowest and the highest of a user turn."""
        opening, closing = turn_texts(tokenizer)
        self._starts = [tokenizer(opening + one, add_special_tokens=False)["input_ids"] for one in OPENINGS]
        self._header = torch.tensor(tokenizer(closing, add_special_tokens=False)["input_ids"], device=device)
        self._end_ids = torch.tensor(end_ids, device=device)
        self._temperatures, self._known = temperatures, known
        self._numbers = np.random.default_rng(seed)
        self._noise = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def write(self, step: Step, shape: WaveShape) -> Wave:
        """A wave's conversations that have a user turn and an answer, and a prompt that is not known.

        Raises:
            ValueError: the template leaves no room for them.
        """
        rows = self._begun(shape)
        low, high = self._temperatures
        drawn = self._numbers.uniform(low, high, size=(shape.rows, 1)).astype(np.float32)
        temperatures = torch.from_numpy(drawn).to(rows.tokens.device)
        for position in range(shape.length - 1):
            logits = step(rows.tokens[:, position], position)
            greedy, answering = logits.argmax(-1), rows.answering()
            # Behind the last user turn only the sampled rows, the first ones, are drawn.
            count = shape.rows if position < rows.turns_end else shape.sampled_rows
            heat = torch.where(answering[:count, None], 1.0, temperatures[:count])
            choice = torch.cat((self._drawn(logits[:count], heat), greedy[count:]))
            choice[shape.sampled_rows :] = torch.where(answering, greedy, choice)[shape.sampled_rows :]
            rows.put(position + 1, choice)
            if position % STEPS_BETWEEN_LOOKS == STEPS_BETWEEN_LOOKS - 1 and rows.all_ended():
                break
        return self._kept(rows, shape)

    def _begun(self, shape: WaveShape) -> _Rows:
        least = max(map(len, self._starts)) + 1 + len(self._header) + SHORTEST_ANSWER
        if shape.length < least:
            raise ValueError(
                f"a conversation by the target's template has {least} tokens or more, got room for {shape.length}: "
                "raise --max-tokens."
            )
        picks = self._numbers.integers(len(self._starts), size=shape.rows)
        most = self._numbers.integers(max(1, shape.max_user_tokens // 2), shape.max_user_tokens + 1, size=shape.rows)
        starts = [self._starts[pick] for pick in picks]
        return _Rows(starts, torch.from_numpy(most), self._header, self._end_ids, shape.length)

    def _drawn(self, logits: Tensor, temperatures: Tensor) -> Tensor:
        """A token of each row at its temperature: the largest logit with Gumbel noise, which needs no sort."""
        noise = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        noise.exponential_(generator=self._noise)
        return (logits.float() / temperatures).sub_(noise.log_()).argmax(-1)

    def _kept(self, rows: _Rows, shape: WaveShape) -> Wave:
        tokens, lengths, starts = (part.cpu().numpy() for part in (rows.tokens, rows.lengths, rows.answer_start))
        whole = np.flatnonzero(rows.whole().cpu().numpy())
        prompts = [tokens[row, : starts[row]] for row in whole]
        fresh = whole[np.array(self._known.fresh(prompts), dtype=bool)]
        kept = self._numbers.permutation(fresh).tolist()
        return Wave(
            [tokens[row, : lengths[row]] for row in kept],
            [int(starts[row]) for row in kept],
            [int(row < shape.sampled_rows) for row in kept],
        )


class _Rows:
    """Where each conversation of a wave stands."""

    def __init__(self, starts: list[list[int]], most: Tensor, header: Tensor, end_ids: Tensor, length: int) -> None:
        """`most` [B] are the tokens that each user turn may get, `header` what stands between it and the answer."""
        count, longest, device = len(starts), max(map(len, starts)), header.device
        begun = np.zeros((count, length), dtype=np.int64)
        for row, start in enumerate(starts):
            begun[row, : len(start)] = start
        self.tokens = torch.from_numpy(begun).to(device)
        self.lengths = torch.full((count,), length, device=device)
        self.answer_start = torch.zeros(count, dtype=torch.int64, device=device)
        self.turns_end = longest + int(most.max()) + 1  # no user turn is open at this position
        self._start_len = torch.tensor([len(start) for start in starts], device=device)
        self._longest_start = longest
        self._most, self._header, self._end_ids = most.to(device), header, end_ids
        self._turn_len = torch.zeros(count, dtype=torch.int64, device=device)
        self._in_header = torch.full((count,), -1, device=device)  # tokens of the header so far; -1 before
        self._ended = torch.zeros(count, dtype=torch.bool, device=device)
        self._empty = torch.zeros(count, dtype=torch.bool, device=device)  # the user turn had no token

    def answering(self) -> Tensor:
        """[B] bool: the next token is one of the answer."""
        return self._in_header >= len(self._header)

    def put(self, position: int, choice: Tensor) -> None:
        """Write the token at a position: the target's choice [B], or what must stand there."""
        answering, ends = self.answering(), torch.isin(choice, self._end_ids)
        in_start = position < self._start_len
        in_turn = ~in_start & (self._in_header < 0)
        closes = in_turn & (ends | (self._turn_len >= self._most))
        self._empty |= closes & (self._turn_len == 0)
        self._turn_len += in_turn & ~closes
        self._in_header = torch.where(closes, 0, self._in_header)
        last = len(self._header) - 1
        in_header = (self._in_header >= 0) & (self._in_header <= last)
        token = torch.where(in_header, self._header[self._in_header.clamp(0, last)], choice)
        if position < self._longest_start:
            token = torch.where(in_start, self.tokens[:, position], token)
        self.answer_start = torch.where(in_header & (self._in_header == last), position + 1, self.answer_start)
        self._in_header += in_header
        self.tokens[:, position] = torch.where(self._ended, 0, token)
        ended = answering & ends & ~self._ended
        self.lengths = torch.where(ended, position + 1, self.lengths)
        self._ended |= ended

    def all_ended(self) -> bool:
        """True when no row needs another step."""
        return bool((self._ended | self._empty).all())

    def whole(self) -> Tensor:
        """[B] bool: the row has a user turn, and an answer that is long enough to draft in."""
        return ~self._empty & (self.answer_start > 0) & (self.lengths - self.answer_start >= SHORTEST_ANSWER)
