"""FlashInfer's custom masks, as DDTREE fills them: a lower triangle is causal, trees are honoured. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.core import flat_tree_mask
from tests.kernels.masked_attention import HEADS, KV_HEADS, NODES, PREFIXES, AttentionCase, trees, triangles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DTYPE = torch.bfloat16


def attend(case: AttentionCase, mask: torch.Tensor | None) -> torch.Tensor:
    """[rows, heads, width] float32 of FlashInfer's paged prefill, pages of one token; None for causal.

    Backend, dtype and width are those that SGLang serves with (layers/attention/flashinfer_backend.py): "auto" would
    take FA3 for the causal case on Hopper, and another dtype another kernel, each minutes of compiling.
    """
    flashinfer = pytest.importorskip("flashinfer")
    starts, pages, keys, values = [0], [], [case.pool_key], [case.pool_value]
    prefix_start = 0
    for b, prefix in enumerate(PREFIXES):
        window = len(case.pool_key) + torch.arange(b * NODES, (b + 1) * NODES, device=case.device)
        pages += [case.slots[prefix_start : prefix_start + prefix], window]
        prefix_start += prefix
        starts.append(starts[-1] + prefix + NODES)
    keys.append(case.key)
    values.append(case.value)
    cache = torch.stack([torch.cat(keys), torch.cat(values)], dim=1).unsqueeze(2)  # [slots, 2, 1, heads, width]
    cache = cache.to(DTYPE)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(64 * 2**20, dtype=torch.uint8, device=case.device), "NHD", backend="fa2"
    )
    wrapper.plan(
        (torch.arange(len(PREFIXES) + 1, dtype=torch.int32) * NODES).to(case.device),
        torch.tensor(starts, dtype=torch.int32, device=case.device),
        torch.cat(pages).to(torch.int32),
        torch.ones(len(PREFIXES), dtype=torch.int32, device=case.device),
        HEADS,
        KV_HEADS,
        case.width,
        1,
        causal=mask is None,
        custom_mask=None if mask is None else mask.to(case.device),
        q_data_type=DTYPE,
        kv_data_type=DTYPE,
    )
    return wrapper.run(case.query.to(DTYPE), cache).float().cpu()


@pytest.fixture
def case(device: torch.device) -> AttentionCase:
    made = AttentionCase(device, width=64)
    for name in ("query", "key", "value", "pool_key", "pool_value"):
        # The oracle gets the numbers that the kernel gets.
        setattr(made, name, getattr(made, name).to(DTYPE).float())
    return made


def test_lower_triangle_equals_causal(case: AttentionCase) -> None:
    masked = attend(case, flat_tree_mask(triangles(), case.prefix_lens))
    torch.testing.assert_close(masked, attend(case, None), rtol=1e-2, atol=1e-2)


def test_a_tree_is_attended_as_written_out(case: AttentionCase) -> None:
    tree = trees()
    found = attend(case, flat_tree_mask(tree, case.prefix_lens))
    torch.testing.assert_close(found, case.expected(tree), rtol=2e-2, atol=2e-2)
    assert (found - attend(case, None)).abs().max() > 5e-2
