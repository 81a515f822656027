"""What a made-up pair is worth, without a server: Hugging Face's forward, the drafter's torch module, core's tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.core import build_draft_tree
from ddtree_sglang.training.model.export import load_drafter


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, length), generator=generator).tolist()


def measure(
    target: Path, draft: Path, num_prompts: int = 24, new_tokens: int = 48, budgets: Sequence[int] = (1, 3, 7, 16, 64)
) -> dict[str, Any]:
    """Tokens a round (bonus included) of the chain and of trees, and the share of tokens that bfloat16 turns over."""
    from transformers import AutoModelForCausalLM

    length = 48
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    prompts = torch.tensor(random_prompts(num_prompts, length, 1))
    with torch.inference_mode():
        rows = greedy(model, prompts, new_tokens)
        found = model.model(rows, output_hidden_states=True)
        half = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
        logits = half(rows).logits[:, length - 1 : -1]
        turned = (logits.argmax(-1) != rows[:, length:]).float().mean()
        sharp = model(rows).logits[:, length - 1 : -1]
        log_probabilities = torch.log_softmax(sharp.float(), -1)
        top = log_probabilities.topk(2).values
        drafter = load_drafter(draft)
        features = torch.cat([found.hidden_states[i + 1] for i in drafter.config.target_layer_ids], -1)
        lengths = {
            f"tree-{budget}": accept_length(model, drafter, rows, features, length, budget + 1) for budget in budgets
        }
        chain = accept_length(model, drafter, rows, features, length, drafter.config.block_size, chain=True)
    return {
        "accept_length": {"chain": chain, **lengths},
        "tokens_turned_by_bfloat16": round(float(turned), 4),
        "margin_below_0.25": round(float((top[..., 0] - top[..., 1] < 0.25).float().mean()), 4),
        "entropy": round(float(-(log_probabilities.exp() * log_probabilities).sum(-1).mean()), 2),
    }


def greedy(model: Any, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The prompts [C, T] with `count` greedy tokens after them; special tokens end nothing."""
    for _ in range(count):
        rows = torch.cat([rows, model(rows).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return rows


def accept_length(
    model: Any, drafter: Any, rows: torch.Tensor, features: torch.Tensor, first: int, nodes: int, chain: bool = False
) -> float:
    """Tokens a round over all rows, each drafted from its first new token on until it ends."""
    tokens = rounds = 0
    for row, of_row in zip(rows, features, strict=True):
        position = first
        while position < len(row) - 1:
            step = 1 + _accepted(model, drafter, row, of_row, position, nodes, chain)
            tokens, rounds, position = tokens + step, rounds + 1, position + step
    return round(tokens / rounds, 3)


def _accepted(
    model: Any, drafter: Any, row: torch.Tensor, features: torch.Tensor, anchor: int, nodes: int, chain: bool
) -> int:
    embeds = model.model.embed_tokens(drafter.block_token_ids(row[anchor][None, None]))
    hidden = drafter(embeds, features[None, :anchor], torch.tensor([[anchor]]))[0, 0, 1:]
    logprobs, ids = torch.log_softmax(model.lm_head(hidden).float(), -1).topk(min(nodes, 64))
    if chain:
        truth = row[anchor + 1 : anchor + 1 + len(ids)]
        agrees = (ids[: len(truth), 0] == truth).long()
        return int(agrees.cumprod(0).sum())
    tree = build_draft_tree(ids[None], logprobs[None], row[anchor][None], nodes)
    children: dict[tuple[int, int], int] = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(tree.parents[0].tolist(), tree.token_ids[0].tolist(), strict=True))
        if node
    }
    node = depth = 0
    while anchor + depth + 1 < len(row) and (node := children.get((node, int(row[anchor + depth + 1])), -1)) > 0:
        depth += 1
    return depth
