"""The exact loss and its closed gradient are those of autograd on the plain formula, however many rows a part has."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.training.fit.whole_vocabulary import LossGradient, whole_vocabulary_loss

ROWS, HIDDEN, VOCABULARY = 23, 12, 61


def _inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    states, target_states = (2 * torch.randn(ROWS, HIDDEN, generator=generator) for _ in range(2))
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    labels[::2] = (states[::2] @ head.T).argmax(-1)
    weights = torch.rand(ROWS, generator=generator)
    weights[3] = 0
    return states, head, labels, target_states, weights / weights.sum()


def _found(soft_share: float, rows_at_once: int) -> LossGradient:
    return whole_vocabulary_loss(*_inputs(), soft_share=soft_share, rows_at_once=rows_at_once)


@pytest.mark.parametrize("rows_at_once", [1, 7, 23, 100])
@pytest.mark.parametrize("soft_share", [0.0, 0.5, 1.0])
def test_loss_and_gradient_are_those_of_autograd(soft_share: float, rows_at_once: int) -> None:
    states, head, labels, target_states, weights = _inputs()
    states.requires_grad_()
    logq = (states @ head.T).log_softmax(-1)
    hard = -logq.gather(1, labels[:, None])[:, 0]
    soft = -((target_states @ head.T).softmax(-1) * logq).sum(-1)
    loss = (weights * ((1 - soft_share) * hard + soft_share * soft)).sum()
    torch.autograd.backward(loss)
    found = _found(soft_share, rows_at_once)
    assert states.grad is not None
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, states.grad)
    assert not found.gradient[3].any()


def test_labels_that_are_the_best_token_are_counted() -> None:
    states, head, labels, _, _ = _inputs()
    right = _found(0.5, 7).right
    assert torch.equal(right, (states @ head.T).argmax(-1) == labels)
    assert right[::2].all()
    assert not right.all()
