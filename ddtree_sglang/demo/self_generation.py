"""On-policy training data: the target writes its own user turns and answers them, greedily and at temperature 1.

The prompt is the chat template up to an open user turn, mostly with the first words of a seed phrase; the target
completes the turn at temperature 1, then answers: greedily, which is the text that a greedy server will have to
draft, and in a share of the batches at temperature 1, for servers that sample. Every finished batch is kept in the
output file, so a stopped run goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddtree_sglang.demo.completers import GREEDY, Completer, Sampling
from ddtree_sglang.demo.conversations import load_conversations

# First words of user turns, so that the data holds what people ask for: without them a small target repeats itself.
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


USER_TURNS = Sampling(1.0, 0.95)


@dataclass(frozen=True)
class GenerationPlan:
    """How much to generate; lengths in tokens."""

    conversations: int
    batch: int = 64
    max_tokens: int = 384
    max_user_tokens: int = 64
    turns: Sampling = USER_TURNS
    sampled_share: float = 0.25  # of the batches, answered at temperature 1 over the whole vocabulary
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sampled_share <= 1:
            raise ValueError(f"the share of sampled answers must be 0 to 1, got {self.sampled_share}.")

    def is_sampled(self, batch_number: int) -> bool:
        """True for batches that are answered at temperature 1, spread evenly."""
        return int((batch_number + 1) * self.sampled_share) > int(batch_number * self.sampled_share)


def generate_conversations(completer: Completer, tokenizer: Any, path: Path, plan: GenerationPlan) -> None:
    """Write `plan.conversations` to an `.npz` file, appending to what it already holds.

    Prints conversations, answer tokens per second and seconds left after every batch.

    Raises:
        ValueError: the tokenizer has no chat template, or a server gave no answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("self-generation needs a chat template, this tokenizer has none: pass --data instead.")
    rows, starts = _read(path)
    started, begun_with, answered = time.monotonic(), len(rows), 0
    while len(rows) < plan.conversations:
        torch.manual_seed(plan.seed * 1_000_003 + len(rows))
        for prompt, answer in _one_batch(completer, tokenizer, plan, len(rows)):
            rows.append(np.concatenate([prompt, answer]))
            starts.append(len(prompt))
            answered += len(answer)
        write_conversations(path, rows, starts)
        seconds = time.monotonic() - started
        left = seconds / max(1, len(rows) - begun_with) * max(0, plan.conversations - len(rows))
        print(
            f"conversations {len(rows)}/{plan.conversations}, {answered / seconds:.0f} answer tokens/s, "
            f"{left:.0f} s left",
            flush=True,
        )


def _one_batch(
    completer: Completer, tokenizer: Any, plan: GenerationPlan, index: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt ids (system and user turn, answer header) and answer ids of up to `plan.batch` conversations."""
    opening, closing = _turn_texts(tokenizer)
    phrases = [SEED_PHRASES[(index + row) % len(SEED_PHRASES)] for row in range(plan.batch)]
    starts = [tokenizer(opening + phrase, add_special_tokens=False)["input_ids"] for phrase in phrases]
    turns = completer.complete(starts, plan.max_user_tokens, plan.turns)
    header = tokenizer(closing, add_special_tokens=False)["input_ids"]
    prompts = [
        start + _without_end(turn, completer.end_id) + header
        for start, turn in zip(starts, turns, strict=True)
        if _without_end(turn, completer.end_id)
    ]
    if not prompts:
        return []
    sampling = Sampling(1.0) if plan.is_sampled(index // plan.batch) else GREEDY
    replies = completer.complete(prompts, plan.max_tokens - max(map(len, prompts)), sampling)
    pairs = zip(prompts, replies, strict=True)
    return [(np.array(prompt), np.array(reply)) for prompt, reply in pairs if len(reply) >= 2]


def _without_end(ids: list[int], end_id: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == end_id else ids


def _turn_texts(tokenizer: Any) -> tuple[str, str]:
    """The template's text before and after a user message."""
    marker = "USER-MESSAGE"
    messages = [{"role": "user", "content": marker}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    opening, closing = text.split(marker)
    return opening, closing


def _read(path: Path) -> tuple[list[np.ndarray], list[int]]:
    if not path.exists():
        return [], []
    held = load_conversations(path)
    return [held.token_ids(i).numpy() for i in range(len(held))], held.answer_start.tolist()


def write_conversations(path: Path, rows: list[np.ndarray], starts: list[int], **more: Any) -> None:
    """Replace the file in one step, so that a kill leaves the old one or the new one; `more` are further arrays."""
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
