"""The generate stage: the target writes the conversations that its drafter is trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from ddtree_sglang.training.data.completers import Completer, LocalCompleter, ServerCompleter
from ddtree_sglang.training.data.self_generation import GenerationPlan, generate_conversations
from ddtree_sglang.training.stages.target import TargetFolder


def generate(target: TargetFolder, data: Path, plan: GenerationPlan, server: str | None, dtype: torch.dtype) -> None:
    """Let the target write conversations to `data`: the server at a URL, or this process in `dtype`."""
    tokenizer = target.tokenizer()
    completer: Completer = (
        LocalCompleter(target.load(dtype)) if server is None else ServerCompleter(server, target.end_ids())
    )
    generate_conversations(completer, tokenizer, data, plan)
