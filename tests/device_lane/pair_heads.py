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
from ddtree_sglang.training.model.drafter_model import RMSNorm
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane.head_protocol import Read
from tests.device_lane.pairs import TRAINING_STEPS, VOCABULARY, TinyPair, train
from tests.support.drafter_parts import rotate_neighbours, state_parts
from tests.support.drafters import DRAFTERS

RANK = 4
TOP_K = 6
LATTICE_HIDDEN, LATTICE_HEADS, LATTICE_SCALE = 8, 2, 5.0
LATTICE_EPS = 1e-6  # of its norms, which is the drafter's, and of its vectors


class Selector(CandidateSelector):
    """DFlash2's, of six candidates."""

    top_k = TOP_K
    reads: tuple[Read, ...] = ("pairs", "states")
    from_anchor = False

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, RANK)

    def scores(
        self,
        states: torch.Tensor,
        root_ids: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_logprobs: torch.Tensor,
        anchors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The training package's own."""
        return super().scores(states, root_ids, topk_ids, topk_logprobs)


class Markov(nn.Module):
    """DSpark's table of low rank; a gate of the position's state and the row itself may weigh its rows."""

    top_k = 16  # as many as a tree of 16 nodes can use
    reads: tuple[Read, ...]

    def __init__(self, hidden_size: int, *, is_gated: bool, from_anchor: bool = False) -> None:
        super().__init__()
        self.from_anchor = from_anchor
        self.markov_w1 = nn.Embedding(VOCABULARY, RANK)
        self.markov_w2 = nn.Linear(RANK, VOCABULARY, bias=False)
        self.gate_proj = nn.Linear(hidden_size + RANK, RANK) if is_gated else None
        self.reads = ("pairs", "states") if is_gated else ("pairs",)

    def scores(
        self,
        states: torch.Tensor,
        root_ids: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_logprobs: torch.Tensor,
        anchors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pair at a time, as the formula says it."""
        batch_size, depth, top_k = topk_ids.shape
        scores = torch.empty(batch_size, depth, top_k, top_k)
        for b in range(batch_size):
            for d in range(depth):
                for r in range(top_k):
                    parent = self.markov_w1(topk_ids[b, d - 1, r] if d else root_ids[b])
                    if self.gate_proj is not None:
                        parent = parent * torch.sigmoid(self.gate_proj(torch.cat([states[b, d], parent])))
                    scores[b, d, r] = topk_logprobs[b, d] + self.markov_w2(parent)[topk_ids[b, d]]
        return scores


class LatticeMLP(nn.Module):
    """Two layers and a SiLU."""

    def __init__(self, in_size: int, mid_size: int, out_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(in_size, mid_size)
        self.down_proj = nn.Linear(mid_size, out_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(nn.functional.silu(self.up_proj(x)))
        return out


class LatticeLayer(nn.Module):
    """All candidates of a block attend to one another."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(hidden_size, LATTICE_EPS)
        self.attn = nn.MultiheadAttention(hidden_size, LATTICE_HEADS, batch_first=True)
        self.mlp_norm = RMSNorm(hidden_size, LATTICE_EPS)
        self.mlp = LatticeMLP(hidden_size, 2 * hidden_size, hidden_size)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        normed = self.attn_norm(x)
        x = x + self.attn(normed, normed, normed, attn_mask=bias, need_weights=False)[0]
        out: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Lattice(nn.Module):
    """LiLiCorr's: a small transformer gives each candidate two unit vectors, whose scaled products are the scores.

    Args:
        embedding: `[V, H]`, the target's.
    """

    top_k = 4  # a power of two
    reads: tuple[Read, ...] = ("pairs", "states", "anchors")
    from_anchor = False
    embedding: torch.Tensor

    def __init__(self, embedding: torch.Tensor, block_size: int) -> None:
        super().__init__()
        hidden_size = embedding.shape[1]
        self.register_buffer("embedding", embedding, persistent=False)
        self.token_proj = nn.Linear(hidden_size, LATTICE_HIDDEN)
        self.pass_hidden_proj = nn.Linear(hidden_size, LATTICE_HIDDEN)
        self.context_proj = nn.Linear(hidden_size, LATTICE_HIDDEN)
        self.feature_norm = nn.LayerNorm(5)
        self.feature_mlp = LatticeMLP(5, LATTICE_HIDDEN, LATTICE_HIDDEN)
        self.slot_embedding = nn.Parameter(torch.zeros(1, 1, block_size - 1, 1, LATTICE_HIDDEN))
        self.rank_embedding = nn.Parameter(torch.zeros(1, 1, 1, self.top_k, LATTICE_HIDDEN))
        self.relative_slot_bias = nn.Parameter(torch.zeros(LATTICE_HEADS, 2 * block_size - 1))
        self.same_slot_bias = nn.Parameter(torch.zeros(LATTICE_HEADS))
        self.layers = nn.ModuleList([LatticeLayer(LATTICE_HIDDEN)])
        self.output_norm = RMSNorm(LATTICE_HIDDEN, LATTICE_EPS)
        self.anchor_norm = RMSNorm(LATTICE_HIDDEN, LATTICE_EPS)
        self.factor_input_proj = nn.Linear(3 * LATTICE_HIDDEN, LATTICE_HIDDEN)
        self.out_head = nn.Linear(LATTICE_HIDDEN, RANK)
        self.in_head = nn.Linear(LATTICE_HIDDEN, RANK)
        self.anchor_out_head = nn.Linear(LATTICE_HIDDEN, RANK)

    def scores(
        self,
        states: torch.Tensor,
        root_ids: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_logprobs: torch.Tensor,
        anchors: torch.Tensor,
    ) -> torch.Tensor:
        """The parent's vector times the candidate's; the root's is that of the last committed token's features."""
        _, depth, top_k = topk_ids.shape
        ranks = torch.arange(top_k).expand_as(topk_ids)
        best = topk_logprobs.max(dim=-1, keepdim=True).values
        facts = (topk_logprobs, topk_logprobs.exp(), topk_logprobs - best, ranks / (top_k - 1), (ranks == 0).float())
        x = self.token_proj(self.embedding[topk_ids]) + self.pass_hidden_proj(states).unsqueeze(2)
        x = x + self.feature_mlp(self.feature_norm(torch.stack(facts, dim=-1)))
        x = (x + self.slot_embedding[0, :, :depth] + self.rank_embedding[0]).flatten(1, 2)
        slots = torch.arange(depth).repeat_interleave(top_k)
        apart = slots[:, None] - slots[None, :]
        middle = self.relative_slot_bias.shape[1] // 2
        bias = self.relative_slot_bias[:, apart + middle] + (apart == 0) * self.same_slot_bias[:, None, None]
        for layer in self.layers:
            x = layer(x, bias.repeat(len(x), 1, 1))
        x = self.output_norm(x).unflatten(1, (depth, top_k))
        root = self.anchor_norm(self.context_proj(anchors))
        near = root[:, None, None].expand_as(x)
        factors = nn.functional.silu(self.factor_input_proj(torch.cat((x, near, x * near), dim=-1)))
        after, before = _unit(self.in_head(factors)), _unit(self.out_head(factors))
        roots = _unit(self.anchor_out_head(root))[:, None, None].expand(-1, 1, top_k, -1)
        return LATTICE_SCALE * torch.cat((roots, before[:, :-1]), dim=1) @ after.transpose(2, 3)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(vectors, dim=-1, eps=LATTICE_EPS)


def with_selector(pair: TinyPair) -> TinyPair:
    """The pair with a DFlash2 drafter, in the files as well."""
    head = _random(Selector(pair.drafter.config.hidden_size, pair.target.config.vocab_size))
    return _written(pair, head, "candidate_selector", "DFlash2 (selector)")


def with_markov(pair: TinyPair) -> TinyPair:
    """The pair with a DSpark drafter that proposes at the masks, in the files as well."""
    return _with_markov(pair, is_gated=False)


def with_gated_markov(pair: TinyPair) -> TinyPair:
    """The same with a gate."""
    return _with_markov(pair, is_gated=True)


def with_markov_from_the_anchor(pair: TinyPair) -> TinyPair:
    """The pair with a DSpark drafter whose tokens each propose the next, the anchor the first: what is not stated.

    Trained on to do so: else the last row, which no other kind of drafter reads, would hardly propose a right token.
    """
    train(pair.drafter, pair.target, 0, TRAINING_STEPS, from_anchor=True)
    export_drafter(pair.drafter, Path(pair.draft), torch.float32)
    return _with_markov(pair, is_gated=False, from_anchor=True)


def with_markov_of_lfm2(pair: TinyPair) -> TinyPair:
    """The same as LFM2's drafters are published: a class of their own, and another rotation."""
    pair = with_markov_from_the_anchor(pair)
    rotate_neighbours(Path(pair.draft), pair.drafter.config.head_dim)
    state_parts(Path(pair.draft), architectures=[DRAFTERS["DSpark for LFM2"].architecture])
    return pair


def _with_markov(pair: TinyPair, *, is_gated: bool, from_anchor: bool = False) -> TinyPair:
    head = _random(Markov(pair.drafter.config.hidden_size, is_gated=is_gated, from_anchor=from_anchor))
    kind = f"DSpark, {'gated' if is_gated else 'vanilla'} Markov head"
    stated = {} if from_anchor else {"sample_from_anchor": False}
    # DSpark's drafters state how many tokens they propose, not how many rows that takes.
    size = {"block_size": pair.block_size - (not from_anchor)}
    return _written(pair, head, "markov_head", kind, size, enable_confidence_head=False, **stated, **size)


def with_lattice(pair: TinyPair) -> TinyPair:
    """The pair with a LiLiCorr drafter, in the files as well."""
    head = _random(Lattice(pair.target.get_input_embeddings().weight, pair.block_size))
    return _written(pair, head, "lilicorr", "LiLiCorr")


def _random(head: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * RANK**-0.5)
    return head.requires_grad_(False)


def _written(
    pair: TinyPair, head: Any, prefix: str, kind: str, dflash: dict[str, Any] | None = None, **top: Any
) -> TinyPair:
    """With the fields by which admission is shown this kind, which are of these heads' sizes, and `top` beside them.

    `dflash` beside those of `dflash_config`.
    """
    folder = Path(pair.draft)
    config = DRAFTERS[kind].config_json(json.loads((folder / "config.json").read_text()))
    config["dflash_config"] |= dflash or {}
    (folder / "config.json").write_text(json.dumps({**config, **top}))
    tensors = {f"{prefix}.{name}": value for name, value in head.state_dict().items()}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    return replace(pair, head=head)
