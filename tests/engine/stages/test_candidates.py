"""Ranking a block's candidates: whole vocabulary, one rank or several, and heads that cannot be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.stages.candidates import VocabShard, rank_candidates
from ddtree_sglang.exceptions import DDTreeConfigError

B, D, HIDDEN, V = 2, 3, 8, 40


class FakeGroup:
    """Every rank's value at once: `all_gather` returns the concatenation in rank order, as the real group does."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.calls: list[list[torch.Tensor]] = []

    def play(self, per_rank: list[list[torch.Tensor]]) -> None:
        self._queue = [torch.cat(tensors, dim=-1) for tensors in zip(*per_rank, strict=True)]

    def all_gather(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        gathered = self._queue.pop(0)
        assert gathered.shape[0] == tensor.shape[0]
        return gathered


def head(weight: torch.Tensor, start: int = 0, rows: int | None = None, added: int = 0) -> Any:
    rows = weight.shape[0] if rows is None else rows
    indices = SimpleNamespace(num_added_elements=added, num_org_elements=rows, org_vocab_start_index=start)
    method = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.weight.T)
    return SimpleNamespace(weight=weight, shard_indices=indices, quant_method=method)


def shard(lm_head: Any, world_size: int = 1, **draft_config: Any) -> VocabShard:
    return VocabShard.from_lm_head(lm_head, SimpleNamespace(**draft_config), FakeGroup(world_size))


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(B, D, HIDDEN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(V, HIDDEN, generator=torch.Generator().manual_seed(1))


def test_candidates_equal_log_softmax_over_the_whole_vocabulary(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    got = rank_candidates(hidden, shard(head(weight)), top_k=5)
    expected = torch.log_softmax(hidden @ weight.T, dim=-1).topk(5, dim=-1)
    torch.testing.assert_close(got.topk_logprobs, expected.values)
    assert torch.equal(got.topk_ids, expected.indices)
    assert got.topk_logprobs.dtype == torch.float32


def test_vocabulary_padding_is_never_a_candidate(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    padded = torch.cat([weight, torch.full((8, HIDDEN), 100.0)])
    got = rank_candidates(hidden, shard(head(padded, rows=V)), top_k=V)
    assert int(got.topk_ids.max()) < V
    torch.testing.assert_close(got.topk_logprobs.exp().sum(-1), torch.ones(B, D))


def test_top_k_larger_than_the_vocabulary_is_cut(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    assert rank_candidates(hidden, shard(head(weight)), top_k=100).topk_ids.shape == (B, D, V)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_sharded_head_gives_the_candidates_of_one_rank(
    num_ranks: int, hidden: torch.Tensor, weight: torch.Tensor
) -> None:
    whole = rank_candidates(hidden, shard(head(weight)), top_k=6)
    rows = V // num_ranks
    shards = [shard(head(weight[r * rows : (r + 1) * rows], start=r * rows), num_ranks) for r in range(num_ranks)]
    flat = hidden.reshape(B * D, HIDDEN)
    per_rank = []
    for one in shards:
        logits = one.logits(flat)
        values, ids = logits.topk(6, dim=-1)
        per_rank.append([values, ids + one.vocab_start, logits.logsumexp(-1, keepdim=True)])
    for one in shards:
        one.tp_group.play(per_rank)
        got = rank_candidates(hidden, one, top_k=6)
        assert torch.equal(got.topk_ids, whole.topk_ids)
        torch.testing.assert_close(got.topk_logprobs, whole.topk_logprobs)


def test_logit_scale_and_softcap_of_the_checkpoint_are_applied(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    got = rank_candidates(hidden, shard(head(weight), output_multiplier=0.5, final_logit_softcapping=2.0), top_k=4)
    logits = torch.tanh(hidden @ weight.T * 0.5 / 2.0) * 2.0
    torch.testing.assert_close(got.topk_logprobs, torch.log_softmax(logits, -1).topk(4, -1).values)


def test_scores_are_float32_for_a_bfloat16_head(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    got = rank_candidates(hidden.bfloat16(), shard(head(weight.bfloat16())), top_k=4)
    assert got.topk_logprobs.dtype == torch.float32


def test_unreadable_heads_are_refused(weight: torch.Tensor) -> None:
    with pytest.raises(DDTreeConfigError, match="unquantized"):
        shard(head(weight.to(torch.int8)))
    with pytest.raises(DDTreeConfigError, match="3 added tokens"):
        shard(head(weight, added=3))
