"""On-policy training data: the target writes its own user turns and answers them, greedily and at temperature 1.

The prompt is the chat template up to an open user turn, sometimes with the first words of a seed phrase; the
target completes the turn at temperature 1, then answers: greedily, which is the text that a greedy server will
have to draft, and in a share of the batches at temperature 1, for servers that sample. Batches run in lock step
through Hugging Face `generate`; every finished batch is kept in the output file, so a stopped run goes on where it
was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.demo.conversations import load_conversations

SEED_PHRASES = (
    "",
    "",
    "Write a Python function",
    "Explain how",
    "Solve this problem:",
    "Rewrite the following text:",
    "What is the difference between",
    "Give me a list of",
)


@dataclass(frozen=True)
class GenerationPlan:
    """How much to generate; lengths in tokens."""

    conversations: int
    batch: int = 64
    max_tokens: int = 384
    max_user_tokens: int = 64
    top_p: float = 0.95
    sampled_share: float = 0.25  # of the batches, answered at temperature 1 over the whole vocabulary
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sampled_share <= 1:
            raise ValueError(f"the share of sampled answers must be 0 to 1, got {self.sampled_share}.")

    def is_sampled(self, batch_number: int) -> bool:
        """True for batches that are answered at temperature 1, spread evenly."""
        return int((batch_number + 1) * self.sampled_share) > int(batch_number * self.sampled_share)


def generate_conversations(target: Any, tokenizer: Any, path: Path, plan: GenerationPlan) -> None:
    """Write `plan.conversations` to an `.npz` file, appending to what it already holds.

    Prints conversations, answer tokens per second and seconds left after every batch.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("self-generation needs a chat template, this tokenizer has none: pass --data instead.")
    rows, starts = _read(path)
    started, begun_with, answered = time.monotonic(), len(rows), 0
    while len(rows) < plan.conversations:
        torch.manual_seed(plan.seed * 1_000_003 + len(rows))
        for prompt, answer in _one_batch(target, tokenizer, plan, len(rows)):
            rows.append(np.concatenate([prompt, answer]))
            starts.append(len(prompt))
            answered += len(answer)
        write_conversations(path, rows, starts)
        seconds = time.monotonic() - started
        left = seconds / (len(rows) - begun_with) * max(0, plan.conversations - len(rows))
        print(
            f"conversations {len(rows)}/{plan.conversations}, {answered / seconds:.0f} answer tokens/s, "
            f"{left:.0f} s left",
            flush=True,
        )


def _one_batch(target: Any, tokenizer: Any, plan: GenerationPlan, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt ids (system and user turn, answer header) and answer ids of up to `plan.batch` conversations."""
    opening, closing = _turn_texts(tokenizer)
    phrase = SEED_PHRASES[(index // plan.batch) % len(SEED_PHRASES)]
    start = tokenizer(opening + phrase, add_special_tokens=False)["input_ids"]
    turns = _complete(
        target,
        torch.tensor([start] * plan.batch),
        plan.max_user_tokens,
        do_sample=True,
        temperature=1.0,
        top_p=plan.top_p,
        top_k=0,
    )
    header = tokenizer(closing, add_special_tokens=False)["input_ids"]
    prompts = [start + turn + header for turn in turns if turn]
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    if not prompts:
        return answers
    how: dict[str, Any] = {"do_sample": False}
    if plan.is_sampled(index // plan.batch):
        how = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    room = plan.max_tokens - max(map(len, prompts))
    replies = answer_batch(target, prompts, room, **how)
    for prompt, reply in zip(prompts, replies, strict=True):
        if len(reply) >= 2:
            answers.append((np.array(prompt), np.array(reply)))
    return answers


def answer_batch(target: Any, prompts: list[list[int]], new_tokens: int, **sampling: Any) -> list[list[int]]:
    """Answers to prompts of any lengths, padded on the left, with their end token."""
    longest, pad = max(map(len, prompts)), target.config.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return _complete(target, ids, new_tokens, mask=mask, keep_end=True, **sampling)


def _turn_texts(tokenizer: Any) -> tuple[str, str]:
    """The template's text before and after a user message."""
    marker = "USER-MESSAGE"
    messages = [{"role": "user", "content": marker}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    opening, closing = text.split(marker)
    return opening, closing


@torch.inference_mode()
def _complete(
    target: Any,
    ids: Tensor,
    new_tokens: int,
    *,
    mask: Tensor | None = None,
    keep_end: bool = False,
    **sampling: Any,
) -> list[list[int]]:
    """Generated ids of each row up to the end token (kept when `keep_end`)."""
    end = target.config.eos_token_id
    out = target.generate(
        ids.to(target.device),
        attention_mask=(torch.ones_like(ids) if mask is None else mask).to(target.device),
        max_new_tokens=max(1, new_tokens),
        pad_token_id=end,
        eos_token_id=end,
        **sampling,
    )
    rows = []
    for row in out[:, ids.shape[1] :].tolist():
        stop = row.index(end) if end in row else len(row)
        rows.append(row[: stop + 1] if keep_end else row[:stop])
    return rows


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
