"""Sliding windows of a tree verify on SGLang's FA3 backend, where a page of the KV pool holds several tokens.

A layer with a window gives each node a row of its own there: the slots of the prefix, then those of its ancestors, with
the window cut from that row's end (layers/attention/flashattention_backend.py, `prepare_swa_spec_page_table_triton`). A
node's ancestors lie in slots that no larger page holds alone, so SGLang makes the row for pages of one token only. A
pool whose pages hold several tokens is the same memory: a slot is a page of one token of it, as SGLang itself reads the
nodes of layers without a window. So the row is made of slots whatever the page size, by SGLang's own function, and the
layer's keys and values are viewed in pages of one token. Of the prefix, a graph has a table of pages: their slots lie
side by side. What reads the row afterwards sees what it sees with pages of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from ddtree_sglang.engine.stages.trees import verifies_with_fa3


def has_windows_in_pages(runner: Any) -> bool:
    """Whether the target has windows, verifies with FA3 and has pages of several tokens; its backend is built by now.

    Layers of its class with a window are SGLang's `has_swa`, which a window of the token alone has as well.
    """
    if runner.sliding_window_size is None or int(runner.page_size) == 1:
        return False
    return verifies_with_fa3(runner)


def making_rows_of_slots(original: Callable[..., None]) -> Callable[..., None]:
    """In the place of `FlashAttentionBackend._init_sliding_window_attn_spec_metadata`.

    It makes the nodes' rows before a verify without a graph, whose prefix is a table of slots still, and into the
    buffers of a graph before each replay, whose prefix is a table of pages by then.
    """

    @wraps(original)
    def _init_sliding_window_attn_spec_metadata(
        backend: Any, metadata: Any, metadata_expand: Any, metadata_swa: Any = None
    ) -> None:
        prefixes = metadata
        if backend.page_size > 1 and metadata_swa is not None:
            slots = slots_of_pages(metadata.page_table, backend.page_size, metadata.max_seq_len_k)
            prefixes = replace(metadata, page_table=slots)
        with _pages_of_one_token(backend):
            original(backend, prefixes, metadata_expand, metadata_swa)
        metadata.swa_spec_metadata = prefixes.swa_spec_metadata

    return _init_sliding_window_attn_spec_metadata


def viewing_slots(original: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `FlashAttentionBackend.get_paged_mha_kv_cache`, which each layer's keys and values come from."""

    @wraps(original)
    def get_paged_mha_kv_cache(backend: Any, layer: Any, **options: Any) -> Any:
        # As `forward_extend` chooses the nodes' rows.
        window = layer.sliding_window_size
        if window is None or window < 0 or backend.forward_metadata.swa_spec_metadata is None:
            return original(backend, layer, **options)
        with _pages_of_one_token(backend):
            return original(backend, layer, **options)

    return get_paged_mha_kv_cache


@contextmanager
def _pages_of_one_token(backend: Any) -> Iterator[None]:
    """Within it the backend takes the pool for one of pages of one token."""
    page_size = backend.page_size
    backend.page_size = 1
    try:
        yield
    finally:
        backend.page_size = page_size


def slots_of_pages(page_table: torch.Tensor, page_size: int, num_tokens: int) -> torch.Tensor:
    """The slots of each row's first tokens.

    Args:
        page_table: `[B, pages]` int32, at least as many as `num_tokens` tokens take.
        page_size: tokens of a page, whose slots lie side by side.
        num_tokens: T.

    Returns:
        `[B, T]` int32; behind a row's own tokens, the slots of whatever page stands there.
    """
    num_pages = -(-num_tokens // page_size)
    offsets = torch.arange(page_size, dtype=page_table.dtype, device=page_table.device)
    slots = page_table[:, :num_pages, None] * page_size + offsets
    return slots.flatten(1)[:, :num_tokens]
