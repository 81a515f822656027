"""Which targets have their attention changed for a tree, and sinks that are taken in after the softmax."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.contract.attention_patches import LATENT_PATCHES, SINK_PATCHES, SLOT_PATCHES, WINDOW_PATCHES
from ddtree_sglang.contract.state_patches import SHORT_CONVOLUTION_PATCHES
from ddtree_sglang.engine.stages.attention_sinks import with_sinks
from ddtree_sglang.engine.stages.fa3_windows import slots_of_pages
from ddtree_sglang.engine.stages.target_attention import adapt_attention
from ddtree_sglang.engine.stages.window_masks import window_of_masks

pytestmark = pytest.mark.sglang


def runner(
    backend: str,
    window: int | None,
    layers: tuple[int, ...] = (),
    has_sinks: bool = True,
    page_size: int = 1,
    arch: str = "MHA",
) -> Any:
    """A target's runner with a backend of this class's name, and layers with these windows."""
    model = torch.nn.Sequential(*(torch.nn.Identity() for _ in layers))
    for module, size in zip(model, layers, strict=True):
        module.attn = SimpleNamespace(sliding_window_size=size)
        module.sinks = torch.zeros(2) if has_sinks else None
    made = type(backend, (), {})()
    if "Hybrid" in backend:
        made.linear_attn_backend, made.full_attn_backend = object(), type("FlashAttentionBackend", (), {})()
    from sglang.srt.configs.model_config import AttentionArch

    config = SimpleNamespace(attention_arch=AttentionArch[arch])
    return SimpleNamespace(
        attn_backend=made, sliding_window_size=window, model=model, page_size=page_size, model_config=config
    )


@pytest.mark.parametrize(
    ("target", "patches"),
    [
        (runner("TritonAttnBackend", 127, (127, -1)), WINDOW_PATCHES),
        (runner("TritonAttnBackend", None, (-1,)), ()),
        (runner("FlashAttentionBackend", 127, (127, -1)), SINK_PATCHES),
        (runner("FlashAttentionBackend", 127, (127, 127)), ()),
        (runner("FlashAttentionBackend", 127, (127, -1), has_sinks=False), ()),
        (runner("FlashAttentionBackend", 127, (127, -1), page_size=4), (*SINK_PATCHES, *SLOT_PATCHES)),
        (runner("FlashAttentionBackend", 0, (0,), has_sinks=False, page_size=4), SLOT_PATCHES),
        (runner("FlashAttentionBackend", None, (-1,), has_sinks=False, page_size=4), ()),
        (runner("FlashAttentionBackend", None, (-1,), has_sinks=False, page_size=4, arch="MLA"), LATENT_PATCHES),
        (runner("HybridLinearAttnBackend", None, (-1,), has_sinks=False, page_size=4, arch="MLA"), LATENT_PATCHES),
        (runner("DDTreeCpuAttnBackend", 127, (127, -1)), ()),
        (runner("ShortConvHybridAttnBackend", None, (-1,), has_sinks=False), SHORT_CONVOLUTION_PATCHES),
        (runner("HybridLinearAttnBackend", None, (-1,), has_sinks=False), ()),
    ],
)
def test_a_backend_is_changed_where_it_would_be_wrong(
    target: Any, patches: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first call imports SGLang, whose platform makes assignments of its own.
    assert window_of_masks(target) == (127 if patches is WINDOW_PATCHES else None)
    assigned: list[Any] = []
    monkeypatch.setattr("ddtree_sglang.contract.patch.assign", assigned.append)
    adapt_attention(target)
    assert tuple(assigned) == patches


def test_a_page_of_several_tokens_is_their_slots_side_by_side() -> None:
    pages = torch.tensor([[3, 0, 7, 9], [2, 5, 9, 9]], dtype=torch.int32)
    made = slots_of_pages(pages, 4, 10)
    assert made.tolist() == [[12, 13, 14, 15, 0, 1, 2, 3, 28, 29], [8, 9, 10, 11, 20, 21, 22, 23, 36, 37]]
    assert made.dtype == torch.int32
    assert torch.equal(slots_of_pages(pages, 1, 3), pages[:, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_taken_in_after_the_softmax_are_one_more_logit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(5, 3, 9, generator=generator, dtype=torch.float64)
    values = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    sinks = torch.tensor([-30.0, 0.5, 40.0])
    without = (scores.softmax(-1) @ values).to(dtype)
    made = with_sinks(without, scores.logsumexp(-1).float(), sinks.to(torch.bfloat16))
    beside = torch.cat([scores, sinks.double().view(1, 3, 1).expand(5, 3, 1)], dim=2).softmax(-1)[..., :9] @ values
    assert made.dtype == dtype
    close = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-6}
    torch.testing.assert_close(made.double(), beside, **close)
