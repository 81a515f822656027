"""SGLang's Triton attention with a window in the mask: keys by each node's position; its own window is by index."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import flat_tree_mask
from ddtree_sglang.core.window_mask import window_tree_mask
from tests.kernels.masked_attention import NODES, PREFIXES, AttentionCase, trees

pytestmark = pytest.mark.sglang

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def attend(case: AttentionCase, window: int, in_mask: bool, sinks: torch.Tensor | None = None) -> torch.Tensor:
    """[rows, heads, width] of the kernel over the last `window` tokens of each prefix, as the backend hands them on."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    out, device, tree = torch.zeros_like(case.query), case.device, trees()
    widths = case.prefix_lens.clamp(max=window)
    slots = [part[len(part) - int(width) :] for part, width in zip(case.prefix_slots(), widths, strict=True)]
    if in_mask:
        made = window_tree_mask(tree, case.prefix_lens, window)
        cells, starts = made.cells, made.starts
    else:
        cells, starts = flat_tree_mask(tree, case.prefix_lens), case.mask_starts()
    extend_attention_fwd(
        case.query,
        case.key,
        case.value,
        out,
        case.pool_key,
        case.pool_value,
        case.query_starts(),
        torch.nn.functional.pad(torch.cumsum(widths, 0), (1, 0)).to(torch.int32).to(device),
        torch.cat(slots).to(device),
        cells.view(torch.uint8).to(device),
        True,
        starts.to(device),
        NODES,
        1.0,
        1.0,
        skip_prefix_custom_mask=not in_mask,
        sliding_window_size=-1 if in_mask else window,
        window_kv_offsets=None if in_mask else (case.prefix_lens - widths).to(torch.int32).to(device),
        sinks=sinks,
    )
    return out.cpu()


@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_window_in_the_mask_ends_at_each_nodes_position(device: torch.device, window: int) -> None:
    case = AttentionCase(device)
    torch.testing.assert_close(attend(case, window, True), case.expected(trees(), window), **CLOSE)


def test_the_kernels_own_window_ends_at_each_nodes_index(device: torch.device) -> None:
    """Why a mask takes its place: nodes lose keys that their positions may attend to."""
    case = AttentionCase(device)
    assert (attend(case, 3, False) - case.expected(trees(), 3)).abs().max() > 1e-2


def test_sinks_are_one_more_logit_beside_the_mask(device: torch.device) -> None:
    case = AttentionCase(device)
    sinks = torch.linspace(-1.0, 2.0, case.query.shape[1], device=device)
    found = attend(case, 3, True, sinks)
    torch.testing.assert_close(found, case.expected(trees(), 3, sinks.cpu()), **CLOSE)
    assert (found - attend(case, 3, True)).abs().max() > 1e-2


def test_a_trees_mask_is_read_where_all_heads_share_one_latent_row(device: torch.device) -> None:
    """Absorbed latent attention: keys are a latent and a rope part, values the latent alone."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    latent, rope = 32, 16
    case, tree = AttentionCase(device, width=latent + rope), trees()
    key, pool = case.key[:, :1].contiguous(), case.pool_key[:, :1].contiguous()
    out = torch.zeros(len(case.query), case.query.shape[1], latent, device=device)
    starts = torch.nn.functional.pad(torch.cumsum(NODES * (case.prefix_lens + NODES), 0), (1, 0))
    extend_attention_fwd(
        case.query,
        key,
        key[..., :latent].contiguous(),
        out,
        pool,
        pool[..., :latent],
        (torch.arange(len(PREFIXES) + 1, dtype=torch.int32) * NODES).to(device),
        torch.nn.functional.pad(torch.cumsum(case.prefix_lens, 0), (1, 0)).to(torch.int32).to(device),
        case.slots,
        flat_tree_mask(tree, case.prefix_lens).view(torch.uint8).to(device),
        True,
        starts.to(device),
        NODES,
        1.0,
        1.0,
        sm_scale=(latent + rope) ** -0.5,
    )
    heads = case.key.shape[1]
    case.key, case.pool_key = key.expand(-1, heads, -1), pool.expand(-1, heads, -1)
    case.value, case.pool_value = case.key, case.pool_key
    torch.testing.assert_close(out.cpu(), case.expected(tree)[..., :latent], **CLOSE)
