"""Prompts by kind: the target's greedy answers to them, kept in a file, and the table of a drafter's scores.

Answers are computed once, so a second drafter is scored on the very same text. They are greedy, so the scores are of
greedy decoding: a draft is accepted exactly as far as it agrees with the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddtree_sglang.training.data.completers import GREEDY, LocalCompleter
from ddtree_sglang.training.data.conversations import Conversations, load_conversations
from ddtree_sglang.training.data.self_generation import write_conversations
from ddtree_sglang.training.score.evaluation import Evaluation

ANSWER_BATCH = 20


@dataclass(frozen=True)
class KindScore:
    """One row of the table: a kind of prompt, or all of them."""

    kind: str
    evaluation: Evaluation

    def record(self) -> dict[str, Any]:
        """JSON-ready, all that the table shows: by rule accept lengths, their 95 % intervals, tokens and rounds; by
        depth how far the probabilities can be trusted.
        """
        scores = self.evaluation.scores
        return {
            "kind": self.kind,
            "conversations": len(scores["chain"].rounds),
            **self.evaluation.summary(),
            "interval_95": {name: [round(end, 3) for end in one.confidence_interval()] for name, one in scores.items()},
            "gains_of_pairs": {
                budget: [round(value, 4) for value in gain] for budget, gain in self.evaluation.gains_of_pairs().items()
            },
            "tokens": sum(scores["chain"].tokens),
            "rounds": {name: sum(one.rounds) for name, one in scores.items()},
            "reliability": [
                {"depth": depth} | {name: round(value, 6) for name, value in asdict(at).items()}
                for depth, at in enumerate(self.evaluation.reliability, start=1)
            ],
        }


def answer_prompts(
    target: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    path: Path,
    max_new_tokens: int = 160,
    *,
    fingerprint: str = "",
) -> tuple[Conversations, list[str]]:
    """Greedy answers of the target to every prompt, and the kind of each; kept in `path` (.npz).

    `fingerprint` says which target answers, and in which dtype; a file that does not say is used with a message.

    Raises:
        ValueError: `path` holds answers to other prompts or of another target, or is damaged.
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
        write_conversations(path, rows, starts, kinds=np.array(kinds), asked=np.array(asked), target=fingerprint)
    conversations = load_conversations(path)
    with np.load(path) as arrays:
        if "asked" not in arrays or "kinds" not in arrays or str(arrays["asked"]) != asked:
            raise ValueError(f"{path} must hold answers to these prompts, it has others: remove it.")
        kinds = [str(kind) for kind in arrays["kinds"]]
        if "target" not in arrays:
            print(f"{path} does not say which target answered: used without comparing them", flush=True)
        elif str(arrays["target"]) != fingerprint:
            raise ValueError(
                f"{path} must hold the answers of this target, {fingerprint!r}; it has those of "
                f"{str(arrays['target'])!r}: remove it, or name another --work folder."
            )
    return conversations, kinds


def _answer(
    target: Any, tokenizer: Any, messages: Sequence[str], max_new_tokens: int
) -> list[tuple[list[int], list[int]]]:
    chats = [[{"role": "user", "content": message}] for message in messages]
    prompts = [
        list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats
    ]
    answers = LocalCompleter(target).complete(prompts, max_new_tokens, GREEDY)
    return list(zip(prompts, answers, strict=True))


def score_table(scores: Sequence[KindScore]) -> str:
    """Markdown: accept length with its 95 % interval by kind, then the reliability of all prompts by depth.

    Of a drafter that scores pairs, between the two: how much longer trees of pairs are accepted.
    """
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
    lines += _gains_table(scores)
    lines += ["", "| depth | confidence | accuracy | calibration error |", "|--:|--:|--:|--:|"]
    for depth, at in enumerate(scores[-1].evaluation.reliability, start=1):
        lines.append(f"| {depth} | {at.confidence:.3f} | {at.accuracy:.3f} | {at.calibration_error:.3f} |")
    return "\n".join(lines)


def _gains_table(scores: Sequence[KindScore]) -> list[str]:
    """What pairs add to the accept length at each budget, with its 95 % interval over the same conversations."""
    gains = [score.evaluation.gains_of_pairs() for score in scores]
    if not gains[0]:
        return []
    lines = ["", "| pairs more than positions | " + " | ".join(gains[0]) + " |", "|---|" + "--:|" * len(gains[0])]
    for score, by_budget in zip(scores, gains, strict=True):
        cells = [f"{gain:+.3f} ({low:+.3f} to {high:+.3f})" for gain, low, high in by_budget.values()]
        lines.append(f"| {score.kind} | " + " | ".join(cells) + " |")
    return lines
