"""A target small enough to decode in a test, with a real KV cache; and drafters from perfect to hostile."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddtree_sglang.core import (
    AcceptedPath,
    DraftTree,
    ancestor_mask,
    build_draft_tree,
    commit_plan,
    layout_draft_tree,
    walk_tree,
)
from tests.core.tree_cases import top_candidates

VOCAB = 11
WIDTH = 16
NUM_LAYERS = 2
MAX_LEN = 96

# next greedy tokens of each request -> [B, D, V] log-probabilities
Drafter = Callable[[list[list[int]]], torch.Tensor]
# (next greedy tokens of each request, roots [B]) -> trees, none of which is deeper than D
Planter = Callable[[list[list[int]], torch.Tensor], DraftTree]


class ToyTarget:
    """A two-layer causal transformer in float64, positions learned, one cache row per slot."""

    def __init__(self, batch_size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.embedding = weight(VOCAB, WIDTH)
        self.position_embedding = weight(MAX_LEN, WIDTH)
        self.projections = weight(NUM_LAYERS, 4, WIDTH, WIDTH) / WIDTH**0.5
        self.keys = torch.zeros(NUM_LAYERS, batch_size, MAX_LEN, WIDTH, dtype=torch.float64)
        self.values = torch.zeros_like(self.keys)

    def forward(
        self,
        token_ids: torch.Tensor,  # [B, T]
        positions: torch.Tensor,  # [B, T]
        slots: torch.Tensor,  # [B, T], cache rows to write
        mask: torch.Tensor,  # [B, T, MAX_LEN], True = may attend
    ) -> torch.Tensor:
        """[B, T, V] logits of the token after each."""
        hidden = self.embedding[token_ids] + self.position_embedding[positions]
        rows = slots.unsqueeze(2).expand(-1, -1, WIDTH)
        for layer, (query, key, value, out) in enumerate(self.projections):
            self.keys[layer].scatter_(1, rows, hidden @ key)
            self.values[layer].scatter_(1, rows, hidden @ value)
            scores = (hidden @ query) @ self.keys[layer].transpose(1, 2) / WIDTH**0.5
            attention = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            hidden = torch.tanh(hidden + attention @ self.values[layer] @ out)
        return hidden @ self.embedding.T

    def move_rows(self, sources: torch.Tensor, targets: torch.Tensor, unused: torch.Tensor) -> None:
        """Commit: rows [B, P] move, and slots outside the committed ones are made unusable."""
        for cache in (*self.keys, *self.values):
            rows = sources.unsqueeze(2).expand(-1, -1, WIDTH)
            cache.scatter_(1, targets.unsqueeze(2).expand(-1, -1, WIDTH), cache.gather(1, rows))
            cache[unused] = 1e3


def decode_greedily(prompt: list[int], num_tokens: int) -> list[int]:
    """Plain decoding, one token per forward, by recomputing nothing: the reference."""
    target = ToyTarget(1)
    tokens = list(prompt)
    for position in range(len(prompt) - 1 + num_tokens):
        here = torch.tensor([[position]])
        mask = torch.arange(MAX_LEN).view(1, 1, -1) <= position
        logits = target.forward(torch.tensor([[tokens[position]]]), here, here, mask)
        if position >= len(prompt) - 1:
            tokens.append(int(logits[0, 0].argmax()))
    return tokens[len(prompt) :]


def decode_with_trees(
    prompts: list[list[int]], greedy: list[list[int]], drafter: Drafter, num_nodes: int, num_tokens: int
) -> tuple[list[list[int]], list[AcceptedPath]]:
    """Rounds of draft, build, verify, accept, commit, in one batch, until every request has `num_tokens`."""
    depth = drafter(greedy).shape[1]

    def plant(coming: list[list[int]], roots: torch.Tensor) -> DraftTree:
        candidates = top_candidates(drafter(coming), min(VOCAB, num_nodes))
        return build_draft_tree(candidates.ids, candidates.logprobs, roots, num_nodes)

    return decode_planted(prompts, greedy, plant, depth, num_tokens)


def decode_planted(
    prompts: list[list[int]], greedy: list[list[int]], plant: Planter, depth: int, num_tokens: int
) -> tuple[list[list[int]], list[AcceptedPath]]:
    """The same with trees of any kind."""
    target = ToyTarget(len(prompts))
    prefill(target, prompts)
    prefix_lens = torch.tensor([len(prompt) - 1 for prompt in prompts])
    roots = torch.tensor([prompt[-1] for prompt in prompts])
    outputs: list[list[int]] = [[] for _ in prompts]
    rounds = []
    while min(map(len, outputs)) < num_tokens:
        coming = [reference[len(output) :] for reference, output in zip(greedy, outputs, strict=True)]
        accepted = tree_round(target, plant(coming, roots), prefix_lens, depth + 1)
        rounds.append(accepted)
        for output, tokens, length in zip(
            outputs, accepted.token_ids.tolist(), accepted.commit_lens.tolist(), strict=True
        ):
            output += tokens[:length]
        prefix_lens = prefix_lens + accepted.commit_lens
        roots = accepted.bonus_ids
    return [output[:num_tokens] for output in outputs], rounds


def prefill(target: ToyTarget, prompts: list[list[int]]) -> None:
    """Fill the cache with every prompt but its last token; shorter prompts write junk beyond their end."""
    longest = max(map(len, prompts)) - 1
    tokens = torch.tensor([(prompt[:-1] + [0] * longest)[:longest] for prompt in prompts])
    positions = torch.arange(longest).expand_as(tokens)
    causal = torch.arange(MAX_LEN).view(1, 1, -1) <= positions.unsqueeze(2)
    target.forward(tokens, positions, positions, causal)


def tree_round(
    target: ToyTarget,
    tree: DraftTree,
    prefix_lens: torch.Tensor,  # [B]
    max_path_len: int,
) -> AcceptedPath:
    """One round with the functions under test."""
    num_nodes = tree.num_nodes
    tree.check_invariants()
    layout = layout_draft_tree(tree, prefix_lens)
    window = prefix_lens.unsqueeze(1) + torch.arange(num_nodes)
    columns = torch.arange(MAX_LEN).view(1, 1, -1)
    mask = (columns < prefix_lens.view(-1, 1, 1)).repeat(1, num_nodes, 1)
    mask.scatter_(2, window.unsqueeze(1).expand(-1, num_nodes, -1), ancestor_mask(tree.parents))
    logits = target.forward(tree.token_ids, layout.positions, window, mask)

    accepted = walk_tree(tree, logits.argmax(-1), max_path_len)
    plan = commit_plan(accepted)
    final = prefix_lens + accepted.commit_lens
    target.move_rows(
        prefix_lens.unsqueeze(1) + plan.source_slots,
        prefix_lens.unsqueeze(1) + plan.target_slots,
        torch.arange(MAX_LEN) >= final.unsqueeze(1),
    )
    # The j-th row of the flat batch holds the choice after the j-th accepted node.
    rows = layout.root_rows + accepted.accept_index
    on_path = accepted.accept_index >= 0
    assert torch.equal(logits.flatten(0, 1)[rows[on_path]].argmax(-1), accepted.token_ids[on_path])
    return accepted
