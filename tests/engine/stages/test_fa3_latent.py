"""The call that reads a tree's latent rows gets them in pages of one token, and no other call does."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.stages.fa3_latent import (
    attending_by_slots,
    has_latent_pages,
    in_slots,
    viewing_latent_slots,
)

pytestmark = pytest.mark.sglang

PAGE, PREFIX, NODES = 4, torch.zeros(2, 3), torch.zeros(2, 3)


def test_a_part_of_each_row_is_viewed_by_slots_without_a_copy() -> None:
    rows = torch.arange(8 * 5.0).view(8, 1, 5)
    part = rows[:, :, 3:].as_strided((2, PAGE, 1, 2), (5 * PAGE, 5, 5, 1), 3)
    slots = in_slots(part)
    assert slots.shape == (8, 1, 1, 2)
    assert slots.stride()[:2] == (5, 5)
    assert torch.equal(slots[:, 0], rows[:, :, 3:])
    assert slots.data_ptr() == part.data_ptr()


def attend(backend: Any, is_tree: bool, tables: list[torch.Tensor]) -> list[tuple[int, ...]]:
    """Sizes of pages that a layer's calls get, by these tables one after the other."""
    seen: list[tuple[int, ...]] = []
    cache = torch.zeros(3, PAGE, 1, 2)
    call = viewing_latent_slots(lambda **options: seen.append(tuple(options["k_cache"].shape[:2])))

    def stock(*_: Any, **__: Any) -> None:
        for table in tables:
            call(k_cache=cache, v_cache=cache, page_table=table)

    forward_batch = SimpleNamespace(forward_mode=SimpleNamespace(is_target_verify=lambda: is_tree))
    forward: Callable[..., None] = attending_by_slots(stock)
    forward(backend, None, None, None, None, forward_batch)
    return seen


def backend(**changes: Any) -> Any:
    made = {"topk": 2, "page_size": PAGE, "use_mla": True}
    nodes = SimpleNamespace(page_table=NODES)
    return SimpleNamespace(**{**made, "forward_metadata_spec_decode_expand": nodes, **changes})


def test_the_nodes_are_read_by_slots_and_the_prefix_by_pages() -> None:
    assert attend(backend(), True, [PREFIX, NODES]) == [(3, PAGE), (3 * PAGE, 1)]


@pytest.mark.parametrize("change", [{"topk": 1}, {"page_size": 1}, {"use_mla": False}, {}], ids=str)
def test_others_read_pages(change: dict[str, Any]) -> None:
    """A chain, pages of one token, layers that SGLang reads right itself, and a forward without a tree."""
    assert attend(backend(**change), bool(change), [PREFIX, NODES]) == [(3, PAGE), (3, PAGE)]


def test_nodes_that_nobody_reads_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="must read its nodes by their table of slots"):
        attend(backend(), True, [PREFIX])
    # What is left of it must not meet the next layer.
    assert attend(backend(use_mla=False), True, [NODES]) == [(3, PAGE)]


@pytest.mark.parametrize(
    ("name", "architecture", "page_size", "expected"),
    [
        ("FlashAttentionBackend", "MLA", 4, True),
        ("FlashAttentionBackend", "MLA", 1, False),
        ("FlashAttentionBackend", "MHA", 4, False),
        ("TritonAttnBackend", "MLA", 4, False),
    ],
)
def test_which_targets_are_changed(name: str, architecture: str, page_size: int, expected: bool) -> None:
    from sglang.srt.configs.model_config import AttentionArch

    runner = SimpleNamespace(
        attn_backend=type(name, (), {})(),
        page_size=page_size,
        model_config=SimpleNamespace(attention_arch=AttentionArch[architecture]),
    )
    assert has_latent_pages(runner) is expected
