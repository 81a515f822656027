"""Ranking a block's candidates: whole vocabulary, one rank or several, and heads that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.candidates import LogitTransform
from ddtree_sglang.engine.stages.candidates import DraftCandidates, VocabShard, rank_candidates
from ddtree_sglang.exceptions import DDTreeConfigError

B, D, HIDDEN, V = 2, 3, 8, 40


class FakeGroup:
    """Of several ranks in turn: a first pass records what each sends, a second returns all of it, in rank order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.sent: list[torch.Tensor] = []
        self.complete = False

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        if not self.complete:
            self.sent.append(tensor.clone())
            return torch.cat([tensor] * self.world_size, dim)
        return torch.cat(self.sent, dim)


def on_every_rank(rank: Callable[[VocabShard], DraftCandidates], shards: list[VocabShard]) -> list[DraftCandidates]:
    """What each rank gets once all have sent; they gather exactly once."""
    group = shards[0].tp_group
    for one in shards:
        rank(one)
    assert len(group.sent) == len(shards)
    group.complete = True
    return [rank(one) for one in shards]


def head(weight: torch.Tensor, start: int = 0, rows: int | None = None, added: int = 0) -> Any:
    rows = weight.shape[0] if rows is None else rows
    indices = SimpleNamespace(num_added_elements=added, num_org_elements=rows, org_vocab_start_index=start)
    method = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.weight.T)
    return SimpleNamespace(weight=weight, shard_indices=indices, quant_method=method)


def shard(lm_head: Any, group: FakeGroup | None = None, **draft_config: Any) -> VocabShard:
    return VocabShard.from_lm_head(lm_head, SimpleNamespace(**draft_config), group or FakeGroup(1))


def shards_of(weight: torch.Tensor, num_ranks: int, rows: int) -> list[VocabShard]:
    """Heads of `rows` tokens each, as SGLang pads and splits a vocabulary: the last may have fewer, or none."""
    group = FakeGroup(num_ranks)
    return [
        shard(head(torch.cat([part, weight.new_full((rows - len(part), HIDDEN), 9.0)]), r * rows, len(part)), group)
        for r in range(num_ranks)
        for part in [weight[r * rows : (r + 1) * rows]]
    ]


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


@pytest.mark.parametrize(("num_ranks", "rows"), [(2, 20), (4, 10), (3, 16), (2, 40)])
def test_sharded_head_gives_the_candidates_of_one_rank(
    num_ranks: int, rows: int, hidden: torch.Tensor, weight: torch.Tensor
) -> None:
    whole = rank_candidates(hidden, shard(head(weight)), top_k=6)
    for got in on_every_rank(lambda one: rank_candidates(hidden, one, 6), shards_of(weight, num_ranks, rows)):
        assert torch.equal(got.topk_ids, whole.topk_ids)
        torch.testing.assert_close(got.topk_logprobs, whole.topk_logprobs)


def test_shards_of_fewer_tokens_than_candidates_fill_up(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    whole = rank_candidates(hidden, shard(head(weight)), top_k=V)
    for got in on_every_rank(lambda one: rank_candidates(hidden, one, V + 2), shards_of(weight, 2, 32)):
        assert torch.equal(got.topk_ids[..., :V], whole.topk_ids)
        torch.testing.assert_close(got.topk_logprobs[..., :V], whole.topk_logprobs)
        assert (got.topk_logprobs[..., V:] == -torch.inf).all()


def test_tied_scores_of_shards_keep_the_order_of_their_ids(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    twice = torch.cat([weight[: V // 2], weight[: V // 2]])
    for got in on_every_rank(lambda one: rank_candidates(hidden, one, 6), shards_of(twice, 2, V // 2)):
        assert torch.equal(got.topk_ids[..., 1::2], got.topk_ids[..., ::2] + V // 2)


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


def test_a_quantized_head_would_rank_by_its_codes(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """What the refusal is for: states are rounded to the codes' type, and the product has no scales."""
    scale = weight.abs().max() / 127
    codes = (weight / scale).round().to(torch.int8)
    one = VocabShard(head(codes), V, 0, LogitTransform(), None)
    best = one.logits(hidden.flatten(0, 1)).argmax(-1)
    assert not torch.equal(best, (hidden.flatten(0, 1) @ (codes * scale).T).argmax(-1))
