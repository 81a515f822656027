"""Latent attention of a tree verify on SGLang's FA3 backend, where a page of the KV pool holds several tokens.

A tree is attended to in two parts there: all nodes over the prefix by a table of pages, and each node over the slots of
its ancestors. For other layers SGLang views the pool in pages of one token for the second part; for latent rows it
hands over the view by the pool's pages, whose table would name pages where it names slots
(layers/attention/flashattention_backend.py, `forward_extend`). So that call gets the other view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from ddtree_sglang.engine.stages.trees import verifies_with_fa3

_tables: list[torch.Tensor] = []
"""The nodes' table of slots `[B * N, N]` of the layer that attends, until it is read; empty otherwise."""


def has_latent_pages(runner: Any) -> bool:
    """Whether the target has latent attention, verifies with FA3 and has pages of several tokens; its backend is built.

    Beside recurrent layers, too.
    """
    from sglang.srt.configs.model_config import AttentionArch

    if int(runner.page_size) == 1 or runner.model_config.attention_arch != AttentionArch.MLA:
        return False
    return verifies_with_fa3(runner)


def attending_by_slots(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `FlashAttentionBackend.forward_extend`: it says which table of its calls has slots."""

    @wraps(original)
    def forward_extend(
        backend: Any, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *others: Any, **options: Any
    ) -> Any:
        has_tree = forward_batch.forward_mode.is_target_verify() and backend.topk > 1
        if not has_tree or backend.page_size == 1 or not backend.use_mla:
            return original(backend, q, k, v, layer, forward_batch, *others, **options)
        with _reading(backend.forward_metadata_spec_decode_expand.page_table):
            return original(backend, q, k, v, layer, forward_batch, *others, **options)

    return forward_extend


@contextmanager
def _reading(table: torch.Tensor) -> Iterator[None]:
    """Within it a call by this table reads slots.

    Raises:
        RuntimeError: there was no such call, so the nodes have not seen each other.
    """
    _tables.append(table)
    try:
        yield
        if _tables:
            raise RuntimeError(
                "a tree's verify on FA3 must read its nodes by their table of slots, and did not; remove --page-size, "
                "or use --attention-backend triton"
            )
    finally:
        _tables.clear()


def viewing_latent_slots(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `flashattention_backend.flash_attn_with_kvcache`, which both parts are attended to with."""

    @wraps(original)
    def flash_attn_with_kvcache(*tensors: Any, **options: Any) -> Any:
        if _tables and options.get("page_table") is _tables[-1]:
            _tables.pop()
            options |= {name: in_slots(options[name]) for name in ("k_cache", "v_cache")}
        return original(*tensors, **options)

    return flash_attn_with_kvcache


def in_slots(pages: torch.Tensor) -> torch.Tensor:
    """The same memory in pages of one token.

    Args:
        pages: `[P, S, heads, width]`, a part of each row of a pool: slots lie one row apart, heads and width within it.

    Returns:
        `[P * S, 1, heads, width]`.

    Raises:
        RuntimeError: pages do not lie side by side, so that this would be a copy.
    """
    from sglang.srt.mem_cache.layout.paged_view import paged_view

    return paged_view(pages.view(-1, *pages.shape[2:]), 1)
