"""SGLang's Triton attention on our masks: a lower triangle is causal, a hidden key matters, prefix cells are not read.

The last is why DDTREE writes tail cells only. It does not hold for the kernel of deterministic inference. Both are
SGLang's own, unchanged, under the interpreter or on a GPU.
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
    extend_attention_fwd(
        case.query,
        case.key,
        case.value,
        out,
        case.pool_key,
        case.pool_value,
        case.query_starts(),
        torch.nn.functional.pad(torch.cumsum(case.prefix_lens, 0), (1, 0)).to(torch.int32).to(case.device),
        case.slots,
        None if mask is None else mask.view(torch.uint8).to(case.device),
        True,
        None if mask is None else case.mask_starts(),
        NODES,
        1.0,
        1.0,
    )
    return out.cpu()


def attend_deterministically(case: AttentionCase, mask: torch.Tensor) -> torch.Tensor:
    """[rows, heads, width] of the kernel that serves `--enable-deterministic-inference`; `mask` in the flat layout."""
    from sglang.kernels.ops.attention.extend_attention import build_unified_kv_indices, extend_attention_fwd_unified

    out, device = torch.zeros_like(case.query), case.device
    ends = case.query_starts()
    prefix_ends = torch.nn.functional.pad(torch.cumsum(case.prefix_lens, 0), (1, 0)).to(torch.int32).to(device)
    window_slots = torch.arange(len(case.key), device=device) + len(case.pool_key)
    lens = torch.full((len(PREFIXES),), NODES, dtype=torch.int32, device=device)
    indptr, indices, prefix_lens = build_unified_kv_indices(
        prefix_ends, case.slots, ends[:-1], lens, window_slots, len(PREFIXES)
    )
    extend_attention_fwd_unified(
        case.query,
        out,
        torch.cat([case.pool_key, case.key]),
        torch.cat([case.pool_value, case.value]),
        1.0,
        1.0,
        ends,
        indptr,
        indices,
        prefix_lens.to(torch.int32),
        NODES,
        custom_mask=mask.to(torch.uint8).to(device),
        mask_indptr=case.mask_starts(),
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


def tail_cells(whole: torch.Tensor, case: AttentionCase) -> torch.Tensor:
    """`whole` with its prefix cells off."""
    tail_only = torch.zeros_like(whole)
    cells = tree_cell_index(case.prefix_lens, NODES).flatten()
    tail_only[cells] = whole[cells]
    assert not torch.equal(tail_only, whole)
    return tail_only


def test_cells_of_the_prefix_are_not_read(device: torch.device) -> None:
    case = AttentionCase(device)
    whole = flat_tree_mask(trees(), case.prefix_lens)
    assert torch.equal(attend(case, tail_cells(whole, case)), attend(case, whole))


def test_the_size_of_the_mask_is_not_read(device: torch.device) -> None:
    """So a round outside a graph may hand on one cell of the buffer: the kernel is given its address."""
    case = AttentionCase(device)
    whole = flat_tree_mask(trees(), case.prefix_lens).to(device)
    assert torch.equal(attend(case, whole[:1]), attend(case, whole))


def test_the_deterministic_kernel_attends_as_written_out_and_reads_the_cells_of_the_prefix(
    device: torch.device,
) -> None:
    case, tree = AttentionCase(device), trees()
    whole, expected = flat_tree_mask(tree, case.prefix_lens), case.expected(tree)
    torch.testing.assert_close(attend_deterministically(case, whole), expected, rtol=1e-4, atol=1e-4)
    assert (attend_deterministically(case, tail_cells(whole, case)) - expected).abs().max() > 1e-1
