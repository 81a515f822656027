"""Accept lengths of a drafter on held-out conversations, without running the target again.

The answers are the target's own greedy text, so a draft is accepted exactly as far as it agrees with the
stored tokens: blocks are drafted at every answer position from stored features, and the decoding rounds are
then walked. Accept length is `core.acceptance_stats.accept_length`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddtree_sglang.core import accept_length, build_draft_tree, count_rounds, walk_tree
from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.anchor_batches import AnchorBatch, gather_batch
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
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
        tokens, rounds = torch.tensor(self.tokens).float(), torch.tensor(self.rounds).float()
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(tokens), (resamples, len(tokens)), generator=generator)
        ratios = tokens[picks].sum(1) / rounds[picks].sum(1).clamp_min(1)
        low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
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
    """Draft at every answer position of the given conversations and walk the rounds."""
    names = ["chain", *(f"tree{budget}" for budget in budgets)]
    tokens: dict[str, list[int]] = {name: [] for name in names}
    rounds: dict[str, list[int]] = {name: [] for name in names}
    counter = ReliabilityCounter(model.config.num_drafts)
    for index in indices:
        start, length = int(conversations.answer_start[index]), len(conversations.token_ids(index))
        if length - start < 2:
            continue
        anchors = torch.arange(start, length - 1)
        batch = gather_batch(conversations, cache, [index], [anchors], model.config.num_drafts)
        top_ids, top_logprobs = _draft(model, embedding, head, batch, feature_scale, max(budgets))
        accepted = _accepted_drafts(top_ids, top_logprobs, batch, budgets)
        counter.add(top_ids, top_logprobs, batch.labels[0], batch.valid[0])
        for name in names:
            tokens[name].append(length - 1 - start)
            rounds[name].append(count_rounds((accepted[name] + 1).tolist()))
    scores = {name: DraftScore(tuple(tokens[name]), tuple(rounds[name])) for name in names}
    return Evaluation(scores, counter)


def _draft(
    model: DFlashDrafter, embedding: Tensor, head: Tensor, batch: AnchorBatch, feature_scale: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Best ids and full-vocabulary log-probabilities [A, D, k] of one conversation's blocks."""
    device = embedding.device
    batch = batch.to(device)
    embeds = embedding[model.block_token_ids(batch.anchor_tokens)].float()
    with torch.autocast(device.type, torch.bfloat16, enabled=head.dtype == torch.bfloat16):
        hidden = model(embeds, batch.features.float() * feature_scale.to(device), batch.anchors)[0, :, 1:]
    ids, logprobs = [], []
    for part in hidden.split(64):
        logits = (part.to(head.dtype) @ head.T).float()
        top = logits.topk(min(k, logits.shape[-1]), dim=-1)
        ids.append(top.indices.cpu())
        logprobs.append((top.values - logits.logsumexp(-1, keepdim=True)).cpu())
    return torch.cat(ids), torch.cat(logprobs)


def _accepted_drafts(
    top_ids: Tensor, top_logprobs: Tensor, batch: AnchorBatch, budgets: tuple[int, ...]
) -> dict[str, Tensor]:
    """Drafts accepted [A] int64 at each anchor, by rule."""
    labels = batch.labels[0].masked_fill(~batch.valid[0], -1)  # [A, D]
    agree = (top_ids[..., 0] == labels).long()
    accepted = {"chain": agree.cumprod(-1).sum(-1)}
    for budget in budgets:
        k = min(budget, top_ids.shape[-1])
        tree = build_draft_tree(
            top_ids[..., :k].contiguous(),
            top_logprobs[..., :k].contiguous(),
            batch.anchor_tokens[0],
            budget + 1,
        )
        # What the target says after a node of depth d is the answer's token d + 1 past the anchor, on its path.
        target_ids = labels.gather(1, tree.depths.clamp(max=labels.shape[1] - 1))
        accepted[f"tree{budget}"] = walk_tree(tree, target_ids, labels.shape[1] + 1).num_correct_drafts
    return accepted
