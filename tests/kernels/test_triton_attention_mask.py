"""SGLang's Triton attention on our masks: a lower triangle is causal, a hidden key matters, prefix cells are not read.

The last is why DDTREE writes tail cells only. The kernel is SGLang's own, unchanged, under the interpreter or on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import flat_tree_mask, tree_cell_index
from tests.kernels.masked_attention import NODES, PREFIXES, AttentionCase, trees, triangles

pytestmark = pytest.mark.sglang


def attend(case: AttentionCase, mask: torch.Tensor | None) -> torch.Tensor:
    """[rows, heads, width] of the kernel; `mask` in the flat layout, None for causal."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    out = torch.zeros_like(case.query)
    ends = torch.arange(len(PREFIXES) + 1, dtype=torch.int32) * NODES
    cells = torch.cumsum(NODES * (case.prefix_lens + NODES), 0)
    extend_attention_fwd(
        case.query,
        case.key,
        case.value,
        out,
        case.pool_key,
        case.pool_value,
        ends.to(case.device),
        torch.nn.functional.pad(torch.cumsum(case.prefix_lens, 0), (1, 0)).to(torch.int32).to(case.device),
        case.slots,
        None if mask is None else mask.to(torch.uint8).to(case.device),
        True,
        None if mask is None else torch.nn.functional.pad(cells, (1, 0)).to(case.device),
        NODES,
        1.0,
        1.0,
    )
    return out.cpu()


def test_lower_triangle_equals_causal(device: torch.device) -> None:
    case = AttentionCase(device)
    masked = attend(case, flat_tree_mask(triangles(), case.prefix_lens))
    torch.testing.assert_close(masked, attend(case, None), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked, case.expected(triangles()), rtol=1e-4, atol=1e-4)


def test_a_tree_is_attended_as_written_out(device: torch.device) -> None:
    case, tree = AttentionCase(device), trees()
    found = attend(case, flat_tree_mask(tree, case.prefix_lens))
    torch.testing.assert_close(found, case.expected(tree), rtol=1e-4, atol=1e-4)
    assert (found - attend(case, None)).abs().max() > 1e-2


def test_hiding_one_key_changes_the_nodes_that_saw_it_and_no_other(device: torch.device) -> None:
    case, tree = AttentionCase(device), trees()
    before = attend(case, flat_tree_mask(tree, case.prefix_lens))
    hidden = tree.clone()
    hidden[2, :, 0] = False  # the root of the last request, hidden from its descendants
    hidden[2, 0, 0] = True
    after = attend(case, flat_tree_mask(hidden, case.prefix_lens))
    changed = (before - after).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [False] * (2 * NODES + 1) + [True] * (NODES - 1)


def test_cells_of_the_prefix_are_not_read(device: torch.device) -> None:
    case, tree = AttentionCase(device), trees()
    whole = flat_tree_mask(tree, case.prefix_lens)
    tail_only = torch.zeros_like(whole)
    cells = tree_cell_index(case.prefix_lens, NODES).flatten()
    tail_only[cells] = whole[cells]
    assert not torch.equal(tail_only, whole)
    assert torch.equal(attend(case, tail_only), attend(case, whole))
