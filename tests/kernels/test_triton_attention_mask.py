"""SGLang's Triton attention on our masks: a lower triangle is causal, a hidden key matters, prefix cells are not read.

The last is why DDTREE writes tail cells only. The kernel is SGLang's own, unchanged, under the interpreter or on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from tree_cases import random_candidates

from ddtree_sglang.core import ancestor_mask, build_draft_tree, flat_tree_mask, tail_cell_index

pytestmark = pytest.mark.sglang

HEADS, KV_HEADS, WIDTH, NODES = 4, 2, 16, 9
PREFIXES = (5, 0, 19)


class Case:
    """Queries, keys and values of a batch: prefixes in a pool, in some order, and the windows beside them."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(3)
        rows, slots = len(PREFIXES) * NODES, sum(PREFIXES)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.device = device
        self.prefix_lens = torch.tensor(PREFIXES)
        self.query = random(rows, HEADS, WIDTH)
        self.key, self.value = random(rows, KV_HEADS, WIDTH), random(rows, KV_HEADS, WIDTH)
        self.pool_key, self.pool_value = random(slots, KV_HEADS, WIDTH), random(slots, KV_HEADS, WIDTH)
        self.slots = torch.randperm(slots, generator=generator).to(device)

    def attend(self, mask: torch.Tensor | None) -> torch.Tensor:
        """[rows, heads, width] of the kernel; `mask` in the flat layout, None for causal."""
        from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

        out = torch.zeros_like(self.query)
        ends = torch.arange(len(PREFIXES) + 1, dtype=torch.int32) * NODES
        cells = torch.cumsum(NODES * (self.prefix_lens + NODES), 0)
        extend_attention_fwd(
            self.query,
            self.key,
            self.value,
            out,
            self.pool_key,
            self.pool_value,
            ends.to(self.device),
            torch.nn.functional.pad(torch.cumsum(self.prefix_lens, 0), (1, 0)).to(torch.int32).to(self.device),
            self.slots,
            None if mask is None else mask.to(torch.uint8).to(self.device),
            True,
            None if mask is None else torch.nn.functional.pad(cells, (1, 0)).to(self.device),
            NODES,
            1.0,
            1.0,
        )
        return out.cpu()

    def expected(self, window: torch.Tensor) -> torch.Tensor:
        """Attention written out: every prefix key, and the window's keys where `window` [B, N, N] allows."""
        out, group = torch.zeros(len(PREFIXES) * NODES, HEADS, WIDTH), HEADS // KV_HEADS
        query, key, value = self.query.cpu(), self.key.cpu(), self.value.cpu()
        starts = torch.nn.functional.pad(torch.cumsum(self.prefix_lens, 0), (1, 0)).tolist()
        for b, prefix in enumerate(PREFIXES):
            slots, rows = self.slots[starts[b] : starts[b] + prefix].cpu(), slice(b * NODES, (b + 1) * NODES)
            keys = torch.cat([self.pool_key.cpu()[slots], key[rows]]).repeat_interleave(group, dim=1)
            values = torch.cat([self.pool_value.cpu()[slots], value[rows]]).repeat_interleave(group, dim=1)
            allowed = torch.cat([torch.ones(NODES, prefix, dtype=torch.bool), window[b]], dim=1)
            scores = torch.einsum("qhd,khd->hqk", query[rows], keys) / WIDTH**0.5
            probs = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
            out[rows] = torch.einsum("hqk,khd->qhd", probs, values)
        return out


def trees() -> torch.Tensor:
    """[B, N, N] ancestor masks of random trees."""
    block = random_candidates(4, len(PREFIXES), 4, 30, NODES - 1)
    return ancestor_mask(build_draft_tree(block.ids, block.logprobs, block.root_ids, NODES).parents)


def triangles() -> torch.Tensor:
    return torch.ones(NODES, NODES).tril().bool().expand(len(PREFIXES), -1, -1).contiguous()


def test_lower_triangle_equals_causal(device: torch.device) -> None:
    case = Case(device)
    masked = case.attend(flat_tree_mask(triangles(), case.prefix_lens))
    torch.testing.assert_close(masked, case.attend(None), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked, case.expected(triangles()), rtol=1e-4, atol=1e-4)


def test_a_tree_is_attended_as_written_out(device: torch.device) -> None:
    case, tree = Case(device), trees()
    found = case.attend(flat_tree_mask(tree, case.prefix_lens))
    torch.testing.assert_close(found, case.expected(tree), rtol=1e-4, atol=1e-4)
    assert (found - case.attend(None)).abs().max() > 1e-2


def test_hiding_one_key_changes_the_nodes_that_saw_it_and_no_other(device: torch.device) -> None:
    case, tree = Case(device), trees()
    before = case.attend(flat_tree_mask(tree, case.prefix_lens))
    hidden = tree.clone()
    hidden[2, :, 0] = False  # the root of the last request, hidden from its descendants
    hidden[2, 0, 0] = True
    after = case.attend(flat_tree_mask(hidden, case.prefix_lens))
    changed = (before - after).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [False] * (2 * NODES + 1) + [True] * (NODES - 1)


def test_cells_of_the_prefix_are_not_read(device: torch.device) -> None:
    case, tree = Case(device), trees()
    whole = flat_tree_mask(tree, case.prefix_lens)
    tail_only = torch.zeros_like(whole)
    cells = tail_cell_index(case.prefix_lens, NODES).flatten()
    tail_only[cells] = whole[cells]
    assert not torch.equal(tail_only, whole)
    assert torch.equal(case.attend(tail_only), case.attend(whole))
