"""Score a drafter on prompts by kind: the target answers them, and the drafter's blocks are walked along its answers.

The answers (and the target's features of them) are kept in the work folder, so a second drafter is scored on the very
same text. Greedy answers score greedy decoding: a draft is accepted exactly as far as it agrees with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddtree_sglang.demo.conversations import Conversations, load_conversations
from ddtree_sglang.demo.evaluation import Evaluation
from ddtree_sglang.demo.self_generation import complete

ANSWER_BATCH = 20


@dataclass(frozen=True)
class KindScore:
    """One row of the table: a kind of prompt, or all of them."""

    kind: str
    evaluation: Evaluation


def answer_prompts(
    target: Any, tokenizer: Any, prompts: Mapping[str, Sequence[str]], path: Path, max_new_tokens: int = 160
) -> tuple[Conversations, list[str]]:
    """Greedy answers of the target to every prompt, and the kind of each; kept in `path` (.npz).

    Raises:
        ValueError: `path` holds answers to other prompts.
    """
    asked = json.dumps({kind: list(messages) for kind, messages in prompts.items()})
    if not path.exists():
        rows, starts, kinds = [], [], []
        for kind, messages in prompts.items():
            for first in range(0, len(messages), ANSWER_BATCH):
                pairs = _answer(target, tokenizer, messages[first : first + ANSWER_BATCH], max_new_tokens)
                rows += [np.array(prompt + answer) for prompt, answer in pairs]
                starts += [len(prompt) for prompt, _ in pairs]
                kinds += [kind] * len(pairs)
                print(f"answered {len(rows)} of {sum(map(len, prompts.values()))} prompts", flush=True)
        _write(path, rows, starts, kinds, asked)
    with np.load(path) as arrays:
        if str(arrays["asked"]) != asked:
            raise ValueError(f"{path} must hold answers to these prompts, it has others: remove it.")
        kinds = [str(kind) for kind in arrays["kinds"]]
    return load_conversations(path), kinds


def _answer(
    target: Any, tokenizer: Any, messages: Sequence[str], max_new_tokens: int
) -> list[tuple[list[int], list[int]]]:
    chats = [[{"role": "user", "content": message}] for message in messages]
    prompts = [
        list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats
    ]
    longest = max(map(len, prompts))
    pad = target.config.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    answers = complete(target, ids, max_new_tokens, mask=mask, keep_end=True, do_sample=False)
    return list(zip(prompts, answers, strict=True))


def _write(path: Path, rows: list[np.ndarray], starts: list[int], kinds: list[str], asked: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(
        partial,
        tokens=np.concatenate(rows).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        answer_start=np.array(starts, dtype=np.int32),
        kinds=np.array(kinds),
        asked=np.array(asked),
    )
    partial.replace(path)


def score_table(scores: Sequence[KindScore]) -> str:
    """Markdown: accept length with its 95 % interval by kind, then the reliability of all prompts by depth."""
    rules = list(scores[0].evaluation.scores)
    lines = [
        "| prompts | " + " | ".join(rules) + " |",
        "|---|" + "--:|" * len(rules),
    ]
    for score in scores:
        cells = []
        for rule in rules:
            one = score.evaluation.scores[rule]
            low, high = one.confidence_interval()
            cells.append(f"{one.accept_length:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {score.kind} | " + " | ".join(cells) + " |")
    lines += ["", "| depth | confidence | accuracy | calibration error |", "|--:|--:|--:|--:|"]
    for depth, at in enumerate(scores[-1].evaluation.reliability, start=1):
        lines.append(f"| {depth} | {at.confidence:.3f} | {at.accuracy:.3f} | {at.calibration_error:.3f} |")
    return "\n".join(lines)
