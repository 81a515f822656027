"""On-policy training data: the target writes its own user turns and answers them, greedily and at temperature 1.

The prompt is the chat template up to an open user turn, most often with a seed phrase as its first words. The target
completes the turn by sampling, then answers it. Answers are greedy, like the text of a greedy server, and in a share of
the batches sampled at temperature 1, like the text of a server that samples. Every finished batch is kept in the output
file, so a stopped run goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddtree_sglang.training.data.completers import GREEDY, Completer, Sampling
from ddtree_sglang.training.data.conversations import load_conversations
from ddtree_sglang.training.described import described

# First words of user turns: without them a small target writes the same few turns again and again.
SEED_PHRASES = (
    "",
    "Write a Python function",
    "Solve this problem:",
    "Explain how",
    "Rewrite the following text:",
    "",
    "Write a Python class",
    "If a train",
    "What is the difference between",
    "Make this email more polite:",
    "",
    "Explain what this code does:",
    "A shop sells",
    "Give me a list of",
    "Summarize this paragraph:",
    "",
    "Write a SQL query that",
    "How many",
    "Why do",
    "Correct the grammar of this sentence:",
    "Write a JavaScript function",
    "Calculate",
    "Write a short story about",
    "Rewrite this in simpler words:",
)

MAX_EMPTY_BATCHES = 5


@dataclass(frozen=True)
class GenerationPlan:
    """How many conversations to generate, and how."""

    conversations: int = described(1000, "conversations that --data shall hold, those there included")
    batch: int = described(64, "conversations that are generated at once", flag="--generation-batch")
    max_tokens: int = described(384, "tokens of a conversation, at most")
    max_user_tokens: int = described(64, "tokens that the target adds to the first words of a user turn, at most")
    turn_temperature: float = described(1.0, "temperature of the user turns that the target writes")
    turn_top_p: float = described(0.95, "top-p of those user turns; 1 spares a sort of the vocabulary")
    sampled_share: float = described(0.25, "share (0 to 1) of the batches that are answered at temperature 1, not 0")
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sampled_share <= 1:
            raise ValueError(f"the share of sampled answers must be 0 to 1, got {self.sampled_share}.")

    @property
    def turns(self) -> Sampling:
        """How the tokens of user turns are chosen."""
        return Sampling(self.turn_temperature, self.turn_top_p)

    def is_sampled(self, batch_number: int) -> bool:
        """True for batches that are answered at temperature 1, spread evenly."""
        return int((batch_number + 1) * self.sampled_share) > int(batch_number * self.sampled_share)


@dataclass
class Written:
    """What the output file holds, in lists that grow."""

    rows: list[np.ndarray]  # [T] ids each
    starts: list[int]
    sampled: list[int]  # 1, 0, or -1 where an older file does not say
    attempted: int  # conversations asked for so far, those that came to nothing among them


def generate_conversations(completer: Completer, tokenizer: Any, path: Path, plan: GenerationPlan) -> None:
    """Write `plan.conversations` to an `.npz` file, appending to what it already holds.

    Prints conversations, answer tokens per second and seconds left after every batch.

    Raises:
        ValueError: the tokenizer has no chat template, a server gave no answer, or several batches in succession
            held no user turn with an answer.
    """
    written = read_written(path)
    if len(written.rows) >= plan.conversations:
        return
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"self-generation needs a chat template, this tokenizer has none: add one, or let {path} hold "
            f"{plan.conversations} conversations from elsewhere."
        )
    started, begun_with, answered, empty = time.monotonic(), len(written.rows), 0, 0
    while len(written.rows) < plan.conversations:
        pairs = _one_batch(completer, tokenizer, plan, written.attempted)
        mark = int(plan.is_sampled(written.attempted // plan.batch))
        written.attempted += plan.batch
        empty = 0 if pairs else empty + 1
        if empty == MAX_EMPTY_BATCHES:
            raise ValueError(
                f"{empty} batches of {plan.batch} in succession had no user turn with an answer of two tokens: does "
                "the target follow its chat template? Raise --max-tokens, or write --data another way."
            )
        written.rows += [np.concatenate(pair) for pair in pairs]
        written.starts += [len(prompt) for prompt, _ in pairs]
        written.sampled += [mark] * len(pairs)
        answered += sum(len(answer) for _, answer in pairs)
        if written.rows:
            marks = np.array(written.sampled, dtype=np.int8)
            write_conversations(path, written.rows, written.starts, sampled=marks, attempted=written.attempted)
        seconds = time.monotonic() - started
        left = seconds / max(1, len(written.rows) - begun_with) * max(0, plan.conversations - len(written.rows))
        print(
            f"conversations {len(written.rows)}/{plan.conversations}, {answered / seconds:.0f} answer tokens/s, "
            f"{left:.0f} s left",
            flush=True,
        )


def _one_batch(
    completer: Completer, tokenizer: Any, plan: GenerationPlan, attempted: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt ids (system and user turn, answer header) and answer ids of up to `plan.batch` conversations.

    Seed and opening phrases follow from `attempted`, so a batch that came to nothing is not asked for again.
    """
    torch.manual_seed(plan.seed * 1_000_003 + attempted)
    opening, closing = turn_texts(tokenizer)
    phrases = [SEED_PHRASES[(attempted + row) % len(SEED_PHRASES)] for row in range(plan.batch)]
    starts = [tokenizer(opening + phrase, add_special_tokens=False)["input_ids"] for phrase in phrases]
    turns = completer.complete(starts, plan.max_user_tokens, plan.turns)
    header = tokenizer(closing, add_special_tokens=False)["input_ids"]
    prompts = [
        start + _without_end(turn, completer.end_ids) + header
        for start, turn in zip(starts, turns, strict=True)
        if _without_end(turn, completer.end_ids)
    ]
    if not prompts:
        return []
    sampling = Sampling(1.0) if plan.is_sampled(attempted // plan.batch) else GREEDY
    replies = completer.complete(prompts, plan.max_tokens - max(map(len, prompts)), sampling)
    pairs = zip(prompts, replies, strict=True)
    return [(np.array(prompt), np.array(reply)) for prompt, reply in pairs if len(reply) >= 2]


def _without_end(ids: list[int], end_ids: tuple[int, ...]) -> list[int]:
    return ids[:-1] if ids and ids[-1] in end_ids else ids


def turn_texts(tokenizer: Any) -> tuple[str, str]:
    """The template's text before and after a user message."""
    marker = "USER-MESSAGE"
    messages = [{"role": "user", "content": marker}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    opening, closing = text.split(marker)
    return opening, closing


def read_written(path: Path) -> Written:
    """What a file of conversations holds; nothing where there is none."""
    if not path.exists():
        return Written([], [], [], 0)
    held = load_conversations(path)
    rows = [held.token_ids(i).numpy() for i in range(len(held))]
    sampled = [-1] * len(held) if held.sampled is None else held.sampled.tolist()
    with np.load(path) as arrays:  # an older file does not count what came to nothing
        attempted = int(arrays["attempted"]) if "attempted" in arrays else len(held)
    return Written(rows, held.answer_start.tolist(), sampled, attempted)


def write_conversations(path: Path, rows: list[np.ndarray], starts: list[int], **more: Any) -> None:
    """Replace the file in one step, so that a kill leaves the old one or the new one.

    `rows` holds at least one conversation, and `starts` the index of each answer. `more` are further arrays by name.
    """
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    partial = path.with_name(path.name + ".partial.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        partial,
        tokens=np.concatenate(rows).astype(np.int32),
        offsets=offsets,
        answer_start=np.array(starts, dtype=np.int32),
        **more,
    )
    partial.replace(path)
