"""What a run may choose: where anchors fall, and how much a position weighs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from ddtree_sglang.training.data.conversations import Conversations, load_conversations
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.anchor_batches import AnchorBatch, batch_at
from ddtree_sglang.training.fit.distillation import choose_candidates, distillation_loss
from tests.training.tiny import LAYER_IDS, tiny_target, write_conversations


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conversations, FeatureCache]:
    folder: Path = tmp_path_factory.mktemp("data")
    conversations = load_conversations(write_conversations(folder / "data.npz", tiny_target(), count=20))
    return conversations, build_feature_cache(conversations, tiny_target(), LAYER_IDS, folder / "features", top_k=8)


def _batch(data: tuple[Conversations, FeatureCache], step: int, uncertainty: float = 0.0) -> AnchorBatch:
    everything = list(range(len(data[0])))
    return batch_at(step, 0, *data, everything, rows=4, anchors_per_row=6, num_drafts=3, uncertainty=uncertainty)


@pytest.fixture
def half_sure(data: tuple[Conversations, FeatureCache]) -> tuple[Conversations, FeatureCache]:
    """The data, altered so that the target is sure after every other token and unsure after the rest."""
    conversations, cache = data
    altered = copy.copy(cache)
    logprobs = np.array(cache._logprobs)
    logprobs[0::2, 0], logprobs[1::2, 0] = np.log(0.99), np.log(0.01)
    altered._logprobs = logprobs
    return conversations, altered


def _share_of_unsure_anchors(data: tuple[Conversations, FeatureCache], uncertainty: float) -> float:
    """Among 240 anchors, those after which the target's best token has a small probability."""
    batches = [_batch(data, step, uncertainty) for step in range(10)]
    confidence = torch.cat([batch.teacher_logprobs[:, :, 0, 0].exp().flatten() for batch in batches])
    return float((confidence < 0.5).float().mean())


def test_uncertain_anchors_come_more_often_and_none_twice(half_sure: tuple[Conversations, FeatureCache]) -> None:
    shares = [_share_of_unsure_anchors(half_sure, share) for share in (0.0, 0.5, 1.0)]
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert 0.62 < shares[1] < 0.85  # the first draws: 3 of 4
    assert shares[2] > 0.95
    for row in _batch(half_sure, 3, uncertainty=1.0).anchors.tolist():
        assert len(set(row)) == len(row)


def test_anchors_depend_on_seed_and_step_alone(data: tuple[Conversations, FeatureCache]) -> None:
    first, again, other = _batch(data, 5, 0.5), _batch(data, 5, 0.5), _batch(data, 6, 0.5)
    assert torch.equal(first.anchors, again.anchors)
    assert not torch.equal(first.anchors, other.anchors)


def test_positions_behind_a_refused_draft_weigh_less(data: tuple[Conversations, FeatureCache]) -> None:
    """Hidden states that point at wrong tokens in slot 1: with the floor at 0 nothing behind it has a gradient."""
    batch = _batch(data, 0)
    head = torch.eye(97)
    candidates = choose_candidates(batch, 97, 97, torch.Generator().manual_seed(0))
    hidden = torch.zeros(4, 6, 4, 97)
    wrong = (batch.labels[..., 0] + 1) % 97
    hidden[:, :, 1].scatter_(-1, wrong.unsqueeze(-1), 200.0)
    hidden.requires_grad_()

    def gradient_sizes(floor: float | None) -> list[float]:
        hidden.grad = None
        weights = torch.ones(3)
        loss = distillation_loss(
            hidden, head, batch, candidates, depth_weights=weights, soft_share=0.0, confidence_floor=floor
        ).loss
        torch.autograd.backward(loss)
        assert hidden.grad is not None
        return hidden.grad.abs().sum((0, 1, 3))[1:].tolist()

    plain, weighted, hard = gradient_sizes(None), gradient_sizes(0.25), gradient_sizes(0.0)
    assert min(plain) > 0
    assert weighted[1] / weighted[0] == pytest.approx(0.25 * plain[1] / plain[0], rel=1e-3)
    assert hard[0] > 0
    assert hard[1] == hard[2] == 0


def test_accuracy_compares_tokens_by_their_own_scores(data: tuple[Conversations, FeatureCache]) -> None:
    """Every token but the label scores a little less; one that was sampled stands for many, and still is no better."""
    batch, head = _batch(data, 0), torch.eye(97)
    candidates = choose_candidates(batch, 97, 2, torch.Generator().manual_seed(0))
    assert candidates.log_weight.max() > 1
    hidden = torch.full((4, 6, 4, 97), 4.5)
    hidden[:, :, 1:].scatter_(-1, batch.labels.unsqueeze(-1), 5.0)
    result = distillation_loss(hidden, head, batch, candidates, depth_weights=torch.ones(3), soft_share=0.0)
    assert torch.equal(result.correct, result.counted)
    assert float(result.counted.min()) > 0
