"""Tree windows behind prefixes of several lengths, and attention over them written out: the oracle of backends."""

from __future__ import annotations

import torch

from ddtree_sglang.core import ancestor_mask, build_draft_tree
from tests.core.tree_cases import random_candidates

HEADS, KV_HEADS, WIDTH, NODES = 4, 2, 16, 9
PREFIXES = (5, 0, 19)


class AttentionCase:
    """Queries, keys and values of a batch: prefixes in a pool, in some order, and the windows beside them."""

    def __init__(self, device: torch.device, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(3)
        rows, slots = len(PREFIXES) * NODES, sum(PREFIXES)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.device, self.width = device, width
        self.prefix_lens = torch.tensor(PREFIXES)
        self.query = random(rows, HEADS, width)
        self.key, self.value = random(rows, KV_HEADS, width), random(rows, KV_HEADS, width)
        self.pool_key, self.pool_value = random(slots, KV_HEADS, width), random(slots, KV_HEADS, width)
        self.slots = torch.randperm(slots, generator=generator).to(device)

    def query_starts(self) -> torch.Tensor:
        """[B + 1] int32: where each request's rows begin among the queries."""
        return (torch.arange(len(PREFIXES) + 1, dtype=torch.int32) * NODES).to(self.device)

    def mask_starts(self) -> torch.Tensor:
        """[B + 1] int64: where each request's cells begin in a mask of the flat layout."""
        return torch.nn.functional.pad(torch.cumsum(NODES * (self.prefix_lens + NODES), 0), (1, 0)).to(self.device)

    def prefix_slots(self) -> list[torch.Tensor]:
        """Slots of each request's prefix, in order, on the host."""
        return list(self.slots.cpu().split(self.prefix_lens.tolist()))

    def expected(
        self, window: torch.Tensor, reach: int | None = None, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention written out: every prefix key, and the window's keys where `window` [B, N, N] allows.

        `reach`: of those only keys at most so many positions before the query's. `sinks` [heads]: one more logit.
        """
        out, group = torch.zeros_like(self.query, device="cpu"), HEADS // KV_HEADS
        query, key, value = self.query.cpu(), self.key.cpu(), self.value.cpu()
        for b, (prefix, slots) in enumerate(zip(PREFIXES, self.prefix_slots(), strict=True)):
            rows = slice(b * NODES, (b + 1) * NODES)
            keys = torch.cat([self.pool_key.cpu()[slots], key[rows]]).repeat_interleave(group, dim=1)
            values = torch.cat([self.pool_value.cpu()[slots], value[rows]]).repeat_interleave(group, dim=1)
            allowed = torch.cat([torch.ones(NODES, prefix, dtype=torch.bool), window[b]], dim=1)
            if reach is not None:
                queries = prefix + window[b].sum(1) - 1
                allowed &= torch.cat([torch.arange(prefix), queries]) >= queries[:, None] - reach
            scores = torch.einsum("qhd,khd->hqk", query[rows], keys) / query.shape[-1] ** 0.5
            scores = scores.masked_fill(~allowed, -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, NODES, 1)], dim=2)
            probs = scores.softmax(-1)[..., : len(keys)]
            out[rows] = torch.einsum("hqk,khd->qhd", probs, values)
        return out


def trees() -> torch.Tensor:
    """[B, N, N] ancestor masks of random trees."""
    block = random_candidates(4, len(PREFIXES), 4, 30, NODES - 1)
    return ancestor_mask(build_draft_tree(block.ids, block.logprobs, block.root_ids, NODES).parents)


def triangles() -> torch.Tensor:
    return torch.ones(NODES, NODES).tril().bool().expand(len(PREFIXES), -1, -1).contiguous()
