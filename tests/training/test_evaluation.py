"""The headline metric on a conversation small enough to count by hand, its interval, and the held-out split."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.training.data.conversations import Conversations, split_held_out
from ddtree_sglang.training.score.evaluation import DraftScore, Evaluation, evaluate_drafter

VOCABULARY = 20
WRONG = 19  # in no conversation


class TableDrafter:
    """Drafts two tokens by a table: (anchor, slot) -> best and second-best token; all others are hopeless."""

    config = SimpleNamespace(num_drafts=2, vocab_size=VOCABULARY, selector_rank=0)

    def __init__(self, table: dict[tuple[int, int], tuple[int, int]]) -> None:
        self.table = table

    def block_token_ids(self, anchor_tokens: torch.Tensor) -> torch.Tensor:
        return anchor_tokens[..., None].expand(*anchor_tokens.shape, 3)

    def __call__(self, embeds: torch.Tensor, _features: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        logits = torch.full((*embeds.shape[:3], VOCABULARY), -9.0)  # the head is the identity
        for row, anchor in enumerate(anchors[0].tolist()):
            for slot in (1, 2):
                best, second = self.table[anchor, slot]
                logits[0, row, slot, best], logits[0, row, slot, second] = 0.6, 0.2
        return logits


class EmptyCache:
    """Features and distributions that the drafter above does not look at."""

    def features(self, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, 4, dtype=torch.bfloat16)

    def next_token_ids(self, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, 1, dtype=torch.int64)

    next_token_logprobs = next_token_ids


def _evaluation() -> Evaluation:
    """Tokens 0 to 8, the answer from 1 on: token p stands at position p, so anchor a is followed by a+1, a+2."""
    right, second_right, wrong = (lambda p: (p, WRONG)), (lambda p: (WRONG, p)), (lambda _: (WRONG, 18))
    kinds = {
        1: (right, right),
        2: (wrong, wrong),
        3: (wrong, wrong),
        4: (second_right, right),
        5: (right, wrong),
        6: (right, right),
        7: (right, right),  # the second of these lies behind the end
    }
    table = {(a, slot): kind(a + slot) for a, pair in kinds.items() for slot, kind in enumerate(pair, start=1)}
    conversations = Conversations(torch.arange(9), torch.tensor([0, 9]), torch.tensor([1]))
    model: Any = TableDrafter(table)
    cache: Any = EmptyCache()
    identity = torch.eye(VOCABULARY)
    return evaluate_drafter(model, identity, identity, conversations, cache, [0], torch.ones(4), budgets=(2, 8))


def test_rounds_of_a_chain_and_of_trees_are_those_counted_by_hand() -> None:
    scores = _evaluation().scores
    # Chain: from 1 to 4 (two drafts and the bonus), to 5 (the bonus alone), to 7 (one draft), to the end.
    assert scores["chain"] == DraftScore(tokens=(7,), rounds=(4,))
    assert scores["chain"].accept_length == 7 / 4
    # Two nodes are the two choices for the first token: 1, 3, 4, 6. Eight hold every path, so 1 leads to 4 and 4 to 7.
    assert scores["tree2"] == DraftScore(tokens=(7,), rounds=(4,))
    assert scores["tree8"] == DraftScore(tokens=(7,), rounds=(3,))


class ParentSelector:
    """Scores that forbid, at depth 2, every token that does not stand right behind its parent in the conversation."""

    hidden_projection = SimpleNamespace(weight=torch.zeros(1))

    def scores(self, _states: torch.Tensor, _roots: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor) -> Any:
        scores = logprobs.unsqueeze(2).repeat(1, 1, ids.shape[2], 1)
        follows = ids[:, 1, None, :] == ids[:, 0, :, None] + 1
        scores[:, 1] = scores[:, 1].masked_fill(~follows, -1e4)
        return scores


def test_a_law_of_pairs_walks_its_own_trees_beside_those_of_positions() -> None:
    """After 4 come 5, a first choice, and 6, a second one: of two nodes 6 is one only if it is likely after 5."""
    hopeless = (WRONG, 18)
    table = {(anchor, slot): hopeless for anchor in (5, 6) for slot in (1, 2)}
    table |= {(4, 1): (5, WRONG), (4, 2): (WRONG, 6)}
    model: Any = TableDrafter(table)
    model.config = SimpleNamespace(num_drafts=2, vocab_size=VOCABULARY, selector_rank=1, selector_top_k=2)
    model.candidate_selector = ParentSelector()
    conversations = Conversations(torch.arange(8), torch.tensor([0, 8]), torch.tensor([4]))
    cache: Any = EmptyCache()
    identity = torch.eye(VOCABULARY)
    scores = evaluate_drafter(model, identity, identity, conversations, cache, [0], torch.ones(4), budgets=(2,)).scores
    # Positions: the nodes 5 and WRONG at depth 1, so 5 and the bonus, then a bonus. Pairs: 5, 6 and the bonus.
    assert scores["tree2"] == DraftScore(tokens=(3,), rounds=(2,))
    assert scores["pairs2"] == DraftScore(tokens=(3,), rounds=(1,))


def test_a_gain_is_of_the_same_conversations() -> None:
    """Both rules need more rounds where text is hard; one of them always needs a tenth fewer."""
    hard, easy = DraftScore((100, 100), (100, 100)), DraftScore((100, 100), (50, 50))
    mixed = DraftScore(hard.tokens + easy.tokens, hard.rounds + easy.rounds)
    better = DraftScore(mixed.tokens, tuple(round(0.9 * n) for n in mixed.rounds))
    gain, low, high = better.gain_over(mixed)
    assert gain == pytest.approx(better.accept_length - mixed.accept_length)
    assert 0 < low <= gain <= high
    assert better.confidence_interval()[0] < mixed.confidence_interval()[1]  # apart from one another they overlap
    assert mixed.gain_over(mixed) == (0.0, 0.0, 0.0)


def test_accuracy_counts_positions_that_exist() -> None:
    first, second = _evaluation().reliability
    assert first.accuracy == pytest.approx(4 / 7)  # anchors 1, 5, 6 and 7 of seven
    assert second.accuracy == pytest.approx(3 / 6)  # anchors 1, 4 and 6 of six
    # Two tokens of 0.6 and 0.2 and eighteen of -9.
    weights = torch.tensor([0.6, 0.2] + [-9.0] * 18)
    assert first.confidence == pytest.approx(float(weights.softmax(0)[0]), rel=1e-5)


def test_interval_of_conversations_that_agree_is_their_accept_length() -> None:
    assert DraftScore((6, 12, 3), (3, 6, 2)).accept_length == 21 / 11
    assert DraftScore((6, 6, 6, 6), (3, 3, 3, 3)).confidence_interval() == (2.0, 2.0)


def test_interval_is_the_one_of_all_resamples() -> None:
    """Five conversations have 3,125 resamples: their quantiles, without a random number."""
    score = DraftScore((10, 21, 9, 40, 33), (8, 10, 7, 12, 15))
    ratios = sorted(
        sum(score.tokens[i] for i in picks) / sum(score.rounds[i] for i in picks)
        for picks in itertools.product(range(5), repeat=5)
    )
    low, high = score.confidence_interval(resamples=20_000)
    assert low == pytest.approx(ratios[round(0.025 * len(ratios))], abs=0.02)
    assert high == pytest.approx(ratios[round(0.975 * len(ratios))], abs=0.02)
    assert low < score.accept_length < high


def test_equal_prompts_are_on_the_same_side_of_the_split() -> None:
    """300 prompts of two tokens, each asked twice and answered in two ways."""
    rows = [[n, n + 1, answer] for answer in (7, 8) for n in range(300)]
    conversations = Conversations(torch.tensor(rows).flatten(), torch.arange(601) * 3, torch.full((600,), 2))
    train, held_out = split_held_out(conversations, 20)
    assert sorted(train + held_out) == list(range(600))
    assert {index % 300 for index in train}.isdisjoint(index % 300 for index in held_out)
    assert 600 * 0.15 < len(held_out) < 600 * 0.25
    smaller = split_held_out(conversations, 10)[1]
    assert set(smaller) < set(held_out)  # what a lower share holds out was never trained on with a higher one
    with pytest.raises(ValueError, match="needs at least 8 conversations, got 0 of 600"):
        split_held_out(conversations, 0)
