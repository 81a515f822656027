"""Whole rounds on toy targets: greedy output is plain decoding's, sampled output follows the target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ddtree_sglang.core import AcceptedPath, DraftTree, build_draft_tree, walk_tree
from tests.core.toy_target import VOCAB, Drafter, decode_greedily, decode_with_trees
from tests.core.tree_cases import top_candidates

DEPTH = 4
NUM_TOKENS = 24
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    """Plain greedy decoding of each prompt, long enough for a drafter to look past the end."""
    return [decode_greedily(prompt, NUM_TOKENS + 2 * DEPTH) for prompt in PROMPTS]


def point_mass(tokens: list[int], confidence: float = 1.0) -> torch.Tensor:
    """[D, V] log-probabilities: `confidence` on the given tokens, the rest spread evenly."""
    rest = (1 - confidence) / (VOCAB - 1)
    probs = torch.full((DEPTH, VOCAB), rest)
    probs[torch.arange(DEPTH), torch.tensor(tokens[:DEPTH])] = confidence
    return probs.log()


def make_drafter(kind: str) -> Drafter:
    generator = torch.Generator().manual_seed(12)

    def draft(coming: list[list[int]]) -> torch.Tensor:
        size = (len(coming), DEPTH, VOCAB)
        if kind == "uniform":
            return torch.zeros(size).log_softmax(-1)
        random = (torch.randn(size, generator=generator) * 3).log_softmax(-1)
        if kind == "random":
            return random
        truth = torch.stack([point_mass(tokens) for tokens in coming])
        if kind == "perfect":
            return truth
        if kind == "hostile":  # every token but the right one
            return torch.where(truth == 0, -torch.inf, random)
        likely = torch.stack([point_mass(tokens, 0.5) for tokens in coming])  # "half right"
        wrong_here = torch.rand(size[:2], generator=generator) < 0.4
        return torch.where(wrong_here.unsqueeze(-1), random, likely)

    return draft


@pytest.mark.parametrize("num_nodes", [2, 5, 17])
@pytest.mark.parametrize("kind", ["random", "uniform", "perfect", "hostile", "half right"])
def test_committed_tokens_equal_plain_greedy_for_any_drafter(
    kind: str, num_nodes: int, greedy: list[list[int]]
) -> None:
    outputs, rounds = decode_with_trees(PROMPTS, greedy, make_drafter(kind), num_nodes, NUM_TOKENS)
    assert outputs == [tokens[:NUM_TOKENS] for tokens in greedy]
    commit_lens = torch.stack([accepted.commit_lens for accepted in rounds])
    if kind == "perfect":
        assert bool((commit_lens == min(DEPTH, num_nodes - 1) + 1).all())
    elif kind == "hostile":
        assert bool((commit_lens == 1).all())
    elif kind == "half right" and num_nodes == 17:
        assert commit_lens.unique().numel() >= 4, "the test must see short and long paths"


def test_toy_target_output_depends_on_position_and_history(greedy: list[list[int]]) -> None:
    """A target that repeated itself would pass the test above with broken masks or positions."""
    assert len(set(greedy[0])) >= 5
    assert decode_greedily([1, 3, 4, 1, 5], NUM_TOKENS) != greedy[0][:NUM_TOKENS]


# Sampling. The target is a table P(next | last two tokens) over four tokens, so that the joint distribution
# of three tokens has 64 cells and an exact formula.
SYMBOLS = 4
NUM_REQUESTS = 20_000
TABLE = (torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(4)) * 1.3).softmax(-1)
PREVIOUS, ROOT = 1, 2

Accept = Callable[[DraftTree, torch.Tensor, torch.Generator], AcceptedPath]


def chi_square_p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of Pearson's statistic over the cells; every cell must be expected."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = torch.tensor((counts.numel() - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic.double() / 2))


def draw(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """[B, N] int64: one token per node, by inverting the cumulative of probs [B, N, V] at uniform [B, N]."""
    return (probs.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1).clamp(max=probs.shape[-1] - 1)


def draw_independently(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[B, N] int64: one token per node, each with a random number of its own."""
    return draw(probs, torch.rand(probs.shape[:2], generator=generator))


def sample_and_walk(tree: DraftTree, probs: torch.Tensor, generator: torch.Generator) -> AcceptedPath:
    """The rule of the product: an independent draw at every node, then the walk."""
    return walk_tree(tree, draw_independently(probs, generator), 3)


def redraw_the_bonus(tree: DraftTree, probs: torch.Tensor, generator: torch.Generator) -> AcceptedPath:
    """Wrong: a draw that is no child is thrown away and drawn again, which favours the drafter's tokens."""
    accepted = walk_tree(tree, draw_independently(probs, generator), 3)
    again = draw_independently(probs, generator)
    last = accepted.num_correct_drafts.unsqueeze(1)
    bonus = again.gather(1, accepted.accept_index.gather(1, last))
    token_ids = accepted.token_ids.scatter(1, last, bonus)
    return AcceptedPath(
        accepted.accept_index,
        accepted.num_correct_drafts,
        accepted.commit_lens,
        token_ids,
        bonus.squeeze(1),
    )


def accept_likely_children(tree: DraftTree, probs: torch.Tensor, generator: torch.Generator) -> AcceptedPath:
    """Wrong: a child that the target finds likely enough is taken without a draw ("typical acceptance")."""
    likely = probs.amax(-1) > 0.5
    return walk_tree(tree, torch.where(likely, probs.argmax(-1), draw_independently(probs, generator)), 3)


def share_one_draw(tree: DraftTree, probs: torch.Tensor, generator: torch.Generator) -> AcceptedPath:
    """Wrong: one random number for all nodes: each token alone is right, the three together are not."""
    uniform = torch.rand(probs.shape[0], 1, generator=generator).expand(probs.shape[:2])
    return walk_tree(tree, draw(probs, uniform), 3)


def first_three_tokens(accept: Accept, draft_scale: float, against: bool) -> torch.Tensor:
    """[64] counts of the first three tokens over many requests, some done in one round, some in three."""
    generator = torch.Generator().manual_seed(99)
    tokens = torch.zeros(NUM_REQUESTS, 8, dtype=torch.int64)  # two of context, then output
    tokens[:, 0], tokens[:, 1] = PREVIOUS, ROOT
    lens = torch.full((NUM_REQUESTS,), 2)
    for _ in range(3):
        previous = tokens.gather(1, (lens - 2).unsqueeze(1))
        roots = tokens.gather(1, (lens - 1).unsqueeze(1))
        # A drafter that knows the target's next distribution at depth 1 and reads it as it likes.
        hint = TABLE[previous, roots].log() * (-2.0 if against else 1.0)
        logits = hint + draft_scale * torch.randn(NUM_REQUESTS, 2, SYMBOLS, generator=generator)
        candidates = top_candidates(logits.log_softmax(-1), 3)
        tree = build_draft_tree(candidates.ids, candidates.logprobs, roots.squeeze(1), 6)
        before = torch.where(tree.parents < 0, previous, tree.token_ids.gather(1, tree.parents.clamp(min=0)))
        accepted = accept(tree, TABLE[before, tree.token_ids.clamp(max=SYMBOLS - 1)], generator)
        columns = (lens.unsqueeze(1) + torch.arange(3)).clamp(max=7)
        live = torch.arange(3) < accepted.commit_lens.unsqueeze(1)
        kept = torch.where(live, accepted.token_ids, tokens.gather(1, columns))
        tokens = tokens.scatter(1, columns, kept)
        lens = (lens + accepted.commit_lens).clamp(max=5)
    cell = (tokens[:, 2] * SYMBOLS + tokens[:, 3]) * SYMBOLS + tokens[:, 4]
    return torch.bincount(cell, minlength=SYMBOLS**3)


def expected_counts() -> torch.Tensor:
    """[64] of the target alone: P(a | previous, root) P(b | root, a) P(c | a, b)."""
    first = TABLE[PREVIOUS, ROOT].view(-1, 1, 1)
    second = TABLE[ROOT].unsqueeze(2)
    return (first * second * TABLE).flatten() * NUM_REQUESTS


def joint_p_value(accept: Accept, draft_scale: float, against: bool) -> float:
    """Of the chi-square test; cells too rare for it are counted together."""
    counts, expected = first_three_tokens(accept, draft_scale, against), expected_counts()
    rare = expected < 8
    pooled = [torch.cat((cells[~rare], cells[rare].sum().view(1))) for cells in (counts, expected)]
    return chi_square_p_value(*pooled)


DRAFTERS = pytest.mark.parametrize(
    ("draft_scale", "against"), [(0.0, False), (2.0, False), (0.5, True)], ids=["good", "noisy", "hostile"]
)


@DRAFTERS
def test_first_three_tokens_have_the_targets_joint_distribution(draft_scale: float, against: bool) -> None:
    assert joint_p_value(sample_and_walk, draft_scale, against) > 1e-3


@DRAFTERS
@pytest.mark.parametrize("accept", [redraw_the_bonus, accept_likely_children, share_one_draw])
def test_the_same_test_rejects_wrong_acceptance_rules(accept: Accept, draft_scale: float, against: bool) -> None:
    assert joint_p_value(accept, draft_scale, against) < 1e-6
