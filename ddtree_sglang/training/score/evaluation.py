"""Accept lengths of a drafter on held-out conversations, without running the target again.

The answers are the target's own greedy text, so a draft is accepted exactly as far as it agrees with the
stored tokens: blocks are drafted at every answer position from stored features, and the decoding rounds are
then walked. Accept length is `core.acceptance_stats.accept_length`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddtree_sglang.core import DraftTree, accept_length, build_draft_tree, count_rounds, walk_tree
from ddtree_sglang.core.candidates import pair_conditionals
from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.anchor_batches import AnchorBatch, gather_batch
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.drafting import Drafts, draft_blocks
from ddtree_sglang.training.score.calibration import Reliability, ReliabilityCounter

TREE_BUDGETS = (8, 16, 32, 64)


@dataclass(frozen=True)
class DraftScore:
    """Rounds and tokens of one verification rule, per conversation."""

    tokens: tuple[int, ...]
    rounds: tuple[int, ...]

    @property
    def accept_length(self) -> float:
        """Tokens committed per round over all conversations, bonus included; 0 without a round."""
        return accept_length(sum(self.tokens), sum(self.rounds)) or 0.0

    def confidence_interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the accept length over conversations."""
        return _interval(self._resampled(resamples, seed))

    def gain_over(self, other: DraftScore, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
        """How much longer the accept length is than `other`'s on the same conversations, and its 95 % interval.

        The resamples are of conversations, the same for both, so what makes a conversation hard counts for neither.
        """
        low, high = _interval(self._resampled(resamples, seed) - other._resampled(resamples, seed))
        return self.accept_length - other.accept_length, low, high

    def _resampled(self, resamples: int, seed: int) -> Tensor:
        """Accept lengths [resamples] of conversations drawn with replacement."""
        tokens, rounds = torch.tensor(self.tokens).float(), torch.tensor(self.rounds).float()
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(tokens), (resamples, len(tokens)), generator=generator)
        return tokens[picks].sum(1) / rounds[picks].sum(1).clamp_min(1)


def _interval(values: Tensor) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile."""
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


@dataclass(frozen=True)
class Evaluation:
    """Scores by rule: "chain", "tree8", ...; and, by draft depth, how far the probabilities can be trusted."""

    scores: dict[str, DraftScore]
    counter: ReliabilityCounter

    @property
    def reliability(self) -> tuple[Reliability, ...]:
        """By draft depth."""
        return self.counter.by_depth()

    def gains_of_pairs(self) -> dict[str, tuple[float, float, float]]:
        """By budget, how much longer the accept length of pairs is than that of positions, and its 95 % interval."""
        budgets = [name.removeprefix("pairs") for name in self.scores if name.startswith("pairs")]
        return {budget: self.scores[f"pairs{budget}"].gain_over(self.scores[f"tree{budget}"]) for budget in budgets}

    def merged(self, other: Evaluation) -> Evaluation:
        """The score over the conversations of both."""
        scores = {
            name: DraftScore(one.tokens + other.scores[name].tokens, one.rounds + other.scores[name].rounds)
            for name, one in self.scores.items()
        }
        return Evaluation(scores, self.counter.merged(other.counter))

    def summary(self) -> dict[str, object]:
        """Rounded numbers for a log line."""
        lengths: dict[str, object] = {name: round(s.accept_length, 3) for name, s in self.scores.items()}
        return lengths | {"accuracy_by_depth": [round(one.accuracy, 4) for one in self.reliability]}


@torch.inference_mode()
def evaluate_drafter(
    model: DFlashDrafter,
    embedding: Tensor,  # [V, H]
    head: Tensor,  # [V, H]
    conversations: Conversations,
    cache: FeatureCache,
    indices: list[int],
    feature_scale: Tensor,  # [F*H]
    *,
    budgets: tuple[int, ...] = TREE_BUDGETS,
) -> Evaluation:
    """Draft at every answer position of the given conversations and walk the rounds.

    A drafter whose head scores pairs is scored with trees of its law of pairs, too, by the names "pairs8", ....
    """
    laws = ("tree", "pairs") if model.config.selector_rank else ("tree",)
    names = ["chain", *(f"{law}{budget}" for law in laws for budget in budgets)]
    tokens: dict[str, list[int]] = {name: [] for name in names}
    rounds: dict[str, list[int]] = {name: [] for name in names}
    counter = ReliabilityCounter(model.config.num_drafts)
    for index in indices:
        start, length = int(conversations.answer_start[index]), len(conversations.token_ids(index))
        if length - start < 2:
            continue
        anchors = torch.arange(start, length - 1)
        batch = gather_batch(conversations, cache, [index], [anchors], model.config.num_drafts)
        features = batch.features.float() * feature_scale
        drafts = draft_blocks(model, embedding, head, features, batch.anchors, batch.anchor_tokens, max(budgets))
        pairs = _pair_logprobs(model, drafts, batch.anchor_tokens[0])
        accepted = _accepted_drafts(drafts, pairs, batch, budgets)
        counter.add(drafts.topk_ids, drafts.topk_logprobs, batch.labels[0], batch.valid[0])
        for name in names:
            tokens[name].append(length - 1 - start)
            rounds[name].append(count_rounds((accepted[name] + 1).tolist()))
    scores = {name: DraftScore(tuple(tokens[name]), tuple(rounds[name])) for name in names}
    return Evaluation(scores, counter)


def _accepted_drafts(
    drafts: Drafts, pair_logprobs: Tensor | None, batch: AnchorBatch, budgets: tuple[int, ...]
) -> dict[str, Tensor]:
    """Drafts accepted [A] int64 at each anchor, by rule."""
    labels = batch.labels[0].masked_fill(~batch.valid[0], -1)  # [A, D]
    agree = (drafts.topk_ids[..., 0] == labels).long()
    accepted = {"chain": agree.cumprod(-1).sum(-1)}
    for budget in budgets:
        tree = build_draft_tree(*_best(drafts, budget), batch.anchor_tokens[0], budget + 1)
        accepted[f"tree{budget}"] = _walked(tree, labels)
    if pair_logprobs is not None:
        best = _best(drafts, pair_logprobs.shape[-1])
        for budget in budgets:
            tree = build_draft_tree(*best, batch.anchor_tokens[0], budget + 1, pair_logprobs)
            accepted[f"pairs{budget}"] = _walked(tree, labels)
    return accepted


def _best(drafts: Drafts, k: int) -> tuple[Tensor, Tensor]:
    """The best k tokens of each position: ids and log-probabilities [A, D, k]."""
    return drafts.topk_ids[..., :k].contiguous(), drafts.topk_logprobs[..., :k].contiguous()


def _walked(tree: DraftTree, labels: Tensor) -> Tensor:
    """Correct drafts [A] of trees, where the target's tokens are `labels` [A, D], -1 where there is none."""
    # What the target says after a node of depth d is the answer's token d + 1 past the anchor, on its path.
    target_ids = labels.gather(1, tree.depths.clamp(max=labels.shape[1] - 1))
    return walk_tree(tree, target_ids, labels.shape[1] + 1).num_correct_drafts


def _pair_logprobs(model: DFlashDrafter, drafts: Drafts, root_ids: Tensor) -> Tensor | None:
    """The law of pairs [A, D, K, K] of a drafter that has one, as the server takes it."""
    if model.config.selector_rank == 0:
        return None
    ids, logprobs = _best(drafts, model.config.selector_top_k)
    selector = model.candidate_selector
    assert selector is not None
    device = selector.hidden_projection.weight.device
    scores = selector.scores(*(one.to(device) for one in (drafts.states, root_ids, ids, logprobs)))
    return pair_conditionals(scores.cpu(), logprobs)
