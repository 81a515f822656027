"""SGLang's FA3 backend under a tree with windows in pages of several tokens, whose rows are made of slots."""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.contract.attention_patches import SLOT_PATCHES
from ddtree_sglang.contract.patch import resolve
from tests.device_lane import backend_case as case
from tests.device_lane.install import install_fa3
from tests.device_lane.test_backends_on_references import (
    CLOSE,
    MAX_BATCH,
    NUM_NODES,
    PAGES,
    PREFIX_LENS,
    SINKS,
    TREE,
    capture,
    forward,
    maker,
    verify_batch,
)

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="the backend's index kernels need Triton's interpreter: start pytest with TRITON_INTERPRET=1",
    ),
]

WINDOW = 3
IN_GRAPH = pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """FA3's backend with the reference under it, changed as a server's is."""
    install_fa3()
    from sglang.srt.layers.attention import flashattention_backend as module

    for patch in SLOT_PATCHES:
        name = patch.target.rpartition(".")[2]
        stock = getattr(module.FlashAttentionBackend, name)
        monkeypatch.setattr(module.FlashAttentionBackend, name, resolve(patch.ours)(stock))
    return module


def of_windows(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, page_size: int, in_graph: bool
) -> tuple[case.Requests, Any, SimpleNamespace]:
    """Requests, a backend that was told of a window, and its forward of a tree of each, which is planned."""
    requests = case.Requests(PREFIX_LENS, page_size)
    backend = maker("fa3", {"fa3": module}, monkeypatch)(requests, window=WINDOW)
    lens = [*PREFIX_LENS]
    if in_graph:
        fill = backend.get_cuda_graph_seq_len_fill_value()
        capture(backend, requests, torch.ones(MAX_BATCH * NUM_NODES * (fill + NUM_NODES), dtype=torch.bool))
        lens.append(fill)
    forward_batch = verify_batch(requests, lens, case.tree_mask(TREE, lens))
    (backend.init_forward_metadata_out_graph if in_graph else backend.init_forward_metadata)(forward_batch)
    return requests, backend, forward_batch


def layer() -> SimpleNamespace:
    """One with a window."""
    made = case.layer()
    made.sliding_window_size = WINDOW
    return made


def by_position(requests: case.Requests, num_rows: int, window: int = WINDOW) -> torch.Tensor:
    """The trees' rows of dense attention, whose windows end at each node's position."""
    depths = TREE.sum(1) - 1
    masks = []
    for length in requests.prefix_lens:
        seen = torch.cat([torch.ones(NUM_NODES, length, dtype=torch.bool), TREE], dim=1)
        positions = torch.cat([torch.arange(length), length + depths])
        masks.append(seen & (positions >= length + depths[:, None] - window))
    q = case.projections(num_rows)[0][: len(masks) * NUM_NODES]
    return case.expected(requests, q, [length + NUM_NODES for length in requests.prefix_lens], masks, SINKS)


def attended(backend: Any, forward_batch: SimpleNamespace) -> torch.Tensor:
    """All rows of a layer with a window and sinks."""
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    out: torch.Tensor = backend.forward_extend(q, k, v, layer(), forward_batch, sinks=SINKS)
    return out


@PAGES
@IN_GRAPH
def test_a_window_is_placed_by_each_nodes_position(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, page_size: int, in_graph: bool
) -> None:
    requests, backend, forward_batch = of_windows(module, monkeypatch, page_size, in_graph)
    out = attended(backend, forward_batch)
    expected = by_position(requests, len(out))
    torch.testing.assert_close(out[: len(expected)], expected, **CLOSE)
    shorter = by_position(requests, len(out), WINDOW - 1)
    assert (out[: len(expected)] - shorter).abs().max() > 1e-2
    assert backend.page_size == page_size


@PAGES
@IN_GRAPH
def test_so_it_is_in_a_pool_of_the_windows_own(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, page_size: int, in_graph: bool
) -> None:
    """Keys of the whole pool are not those of the windows' slots: whose rows are not translated reads NaN."""
    requests, backend, forward_batch = of_windows(module, monkeypatch, page_size, in_graph=False)
    attended(backend, forward_batch)  # writes the nodes' keys
    # Padding is in the first page of either pool.
    pages = 1 + torch.randperm(case.NUM_SLOTS // page_size - 1, generator=torch.Generator().manual_seed(1))
    pages = torch.cat([torch.tensor([0]), pages])
    to_own = (pages[:, None] * page_size + torch.arange(page_size)).flatten()
    own = case.Pool()
    own.keys[to_own], own.values[to_own] = requests.pool.keys[: len(to_own)], requests.pool.values[: len(to_own)]
    requests.pool.get_kv_buffer = lambda _: (own.keys, own.values)  # type: ignore[method-assign]
    requests.pool.translate_loc_from_full_to_swa = lambda slots: to_own[slots.long()]  # type: ignore[attr-defined]
    monkeypatch.setattr(module.FlashAttentionBackend, "_get_swa_write_locations", lambda *_: torch.zeros(0).long())
    backend.use_sliding_window_kv_pool = True
    backend.init_cuda_graph_state(MAX_BATCH, MAX_BATCH * NUM_NODES)
    lens = [*PREFIX_LENS]
    if in_graph:
        capture(backend, requests, torch.ones(MAX_BATCH * NUM_NODES * (1 + NUM_NODES), dtype=torch.bool))
        lens.append(1)
        forward_batch = verify_batch(requests, lens, case.tree_mask(TREE, lens))
    (backend.init_forward_metadata_out_graph if in_graph else backend.init_forward_metadata)(forward_batch)
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    again = backend.forward_extend(q, k, v, layer(), forward_batch, save_kv_cache=False, sinks=SINKS)
    expected = by_position(requests, len(again))
    torch.testing.assert_close(again[: len(expected)], expected, **CLOSE)


@PAGES
@IN_GRAPH
def test_layers_without_a_window_read_pages_as_before(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, page_size: int, in_graph: bool
) -> None:
    requests, backend, forward_batch = of_windows(module, monkeypatch, page_size, in_graph)
    out = forward(backend, forward_batch)
    masks = [torch.cat([torch.ones(NUM_NODES, n, dtype=torch.bool), TREE], dim=1) for n in PREFIX_LENS]
    q = case.projections(len(out))[0][: len(masks) * NUM_NODES]
    expected = case.expected(requests, q, [length + NUM_NODES for length in PREFIX_LENS], masks)
    torch.testing.assert_close(out[: len(q)], expected, **CLOSE)


@PAGES
def test_a_prefill_under_a_window_reads_pages_as_before(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests, backend, _ = of_windows(module, monkeypatch, page_size, in_graph=False)
    ends = [length + NUM_NODES for length in PREFIX_LENS]
    forward_batch = case.batch(requests, ForwardMode.EXTEND, ends, 0, prefix_lens=PREFIX_LENS)
    backend.init_forward_metadata(forward_batch)
    out = forward(backend, forward_batch, layer())
    masks = []
    for length, end in zip(PREFIX_LENS, ends, strict=True):
        columns, rows = torch.arange(end), torch.arange(length, end)[:, None]
        masks.append((columns <= rows) & (columns >= rows - WINDOW))
    torch.testing.assert_close(out, case.expected(requests, case.projections(len(out))[0], ends, masks), **CLOSE)


@pytest.mark.parametrize("page_size", [1, 4])
def test_sglang_itself_makes_these_rows_for_pages_of_one_token(page_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why they are made anew."""
    install_fa3()
    from sglang.srt.layers.attention import flashattention_backend as module

    if page_size == 1:
        of_windows(module, monkeypatch, page_size, in_graph=False)
        return
    with pytest.raises(AssertionError, match="page size > 1 sliding window attention"):
        of_windows(module, monkeypatch, page_size, in_graph=False)
