"""Heads that score pairs, with random weights, for the drafter of a tiny pair.

Their products are about as large as the differences of the drafter's log-probabilities, so that a score after another
token than the parent changes the tree.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ddtree_sglang.training.model.candidate_selector import CandidateSelector
from tests.device_lane.pairs import VOCABULARY, TinyPair

RANK = 4
TOP_K = 6


class Selector(CandidateSelector):
    """DFlash2's, of six candidates."""

    top_k = TOP_K

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, RANK)


class GatedMarkov(nn.Module):
    """DSpark's table of low rank, whose rows are weighed by a gate of the position's state and the row itself."""

    top_k = 16  # as many as a tree of 16 nodes can use

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(VOCABULARY, RANK)
        self.markov_w2 = nn.Linear(RANK, VOCABULARY, bias=False)
        self.gate_proj = nn.Linear(hidden_size + RANK, RANK)

    def scores(
        self, states: torch.Tensor, root_ids: torch.Tensor, topk_ids: torch.Tensor, topk_logprobs: torch.Tensor
    ) -> torch.Tensor:
        """One pair at a time, as the formula says it."""
        batch_size, depth, top_k = topk_ids.shape
        scores = torch.empty(batch_size, depth, top_k, top_k)
        for b in range(batch_size):
            for d in range(depth):
                for r in range(top_k):
                    parent = self.markov_w1(topk_ids[b, d - 1, r] if d else root_ids[b])
                    gate = torch.sigmoid(self.gate_proj(torch.cat([states[b, d], parent])))
                    scores[b, d, r] = topk_logprobs[b, d] + self.markov_w2(gate * parent)[topk_ids[b, d]]
        return scores


def with_selector(pair: TinyPair) -> TinyPair:
    """The pair with a DFlash2 drafter, in the files as well."""
    head = _random(Selector(pair.drafter.config.hidden_size, pair.target.config.vocab_size))
    fields = {"selector_rank": RANK, "selector_top_k": TOP_K}
    return _written(pair, head, "candidate_selector", "DFlash2DraftModel", fields, {})


def with_gated_markov(pair: TinyPair) -> TinyPair:
    """The pair with a DSpark drafter that proposes at the masks, in the files as well."""
    head = _random(GatedMarkov(pair.drafter.config.hidden_size))
    fields = {"markov_rank": RANK, "markov_head_type": "gated", "enable_confidence_head": False}
    return _written(pair, head, "markov_head", "Qwen3DSparkModel", {}, fields | {"sample_from_anchor": False})


def _random(head: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * RANK**-0.5)
    return head.requires_grad_(False)


def _written(
    pair: TinyPair, head: Any, prefix: str, architecture: str, dflash: dict[str, Any], top: dict[str, Any]
) -> TinyPair:
    folder = Path(pair.draft)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [architecture], "dflash_config": config["dflash_config"] | dflash, **top}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{prefix}.{name}": value for name, value in head.state_dict().items()}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    return replace(pair, head=head)
