"""SGLang's own FA3 and FlashInfer backends over the references: metadata, eager and of graphs, then attention."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.device_lane import backend_case as case
from tests.device_lane.dense import ancestors, causal
from tests.device_lane.install import install_fa3, install_flashinfer
from tests.device_lane.violations import LaneViolation

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="the backends' index kernels need Triton's interpreter: start pytest with TRITON_INTERPRET=1",
    ),
]

PAGES = pytest.mark.parametrize("page_size", [1, 4, 16])
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
#      0
#     / \
#    1   2
#    |
#    3
TREE = ancestors([-1, 0, 0, 1])
NUM_NODES = len(TREE)
PREFIX_LENS = [5, 11, 1]
MAX_BATCH = 4


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """Both backends' modules with the references under them."""
    install_fa3()
    install_flashinfer()
    from sglang.srt.layers.attention import flashattention_backend, flashinfer_backend

    return {"fa3": flashattention_backend, "flashinfer": flashinfer_backend}


Make = Callable[..., Any]


@pytest.fixture(params=["fa3", "flashinfer"])
def make(request: pytest.FixtureRequest, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes one of the backends for some requests, with buffers for graphs."""
    return maker(request.param, modules, monkeypatch)


def maker(name: str, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Make:
    """The same, by name."""
    classes = {"fa3": "FlashAttentionBackend", "flashinfer": "FlashInferAttnBackend"}

    def made(
        requests: case.Requests, is_draft: bool = False, window: int | None = None, chunk: int | None = None
    ) -> Any:
        case.settle(monkeypatch, modules[name], NUM_NODES)
        monkeypatch.setattr("sglang.srt.mem_cache.kv_index_translator.get_parallel", modules[name].get_parallel)
        runner = case.runner(requests, is_draft)
        runner.sliding_window_size = window
        runner.attention_chunk_size, runner.model_config.is_local_attention_model = chunk, chunk is not None
        backend = getattr(modules[name], classes[name])(runner)
        backend.init_cuda_graph_state(MAX_BATCH, MAX_BATCH * NUM_NODES)
        return backend

    return made


def verify_input(mask: torch.Tensor | None, num_rows: int, topk: int = 2) -> Any:
    """SGLang's own input of a verify forward."""
    from sglang.srt.speculative.dflash_info import DFlashVerifyInput

    rows = torch.arange(num_rows)
    return DFlashVerifyInput(rows, rows, draft_token_num=NUM_NODES, topk=topk, custom_mask=mask)


def verify_batch(requests: case.Requests, seq_lens: Sequence[int], mask: torch.Tensor | None) -> SimpleNamespace:
    """A verify forward of the requests at these lengths, and of padded rows behind them."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    num_real = len(requests.prefix_lens) * NUM_NODES
    return case.batch(requests, ForwardMode.TARGET_VERIFY, seq_lens, NUM_NODES, verify_input(mask, num_real))


def of_trees(make: Callable[..., Any], page_size: int = 1) -> tuple[case.Requests, Any, SimpleNamespace]:
    """Requests, a backend of them, and its forward of a tree of each, which is planned."""
    requests = case.Requests(PREFIX_LENS, page_size)
    backend = make(requests)
    forward_batch = verify_batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
    backend.init_forward_metadata(forward_batch)
    return requests, backend, forward_batch


def forward(backend: Any, forward_batch: SimpleNamespace, layer: SimpleNamespace | None = None) -> torch.Tensor:
    """Attention of all rows, padded ones too."""
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    return backend.forward_extend(q, k, v, layer or case.layer(), forward_batch)


def check_verify(requests: case.Requests, out: torch.Tensor, sinks: torch.Tensor | None = None) -> None:
    """Equal to dense attention under the ancestor mask."""
    masks = [
        torch.cat([torch.ones(NUM_NODES, length, dtype=torch.bool), TREE], dim=1) for length in requests.prefix_lens
    ]
    q = case.projections(len(out))[0][: len(masks) * NUM_NODES]
    lens = [length + NUM_NODES for length in requests.prefix_lens]
    torch.testing.assert_close(out[: len(q)], case.expected(requests, q, lens, masks, sinks), **CLOSE)


def capture(backend: Any, requests: case.Requests, mask: torch.Tensor | None) -> None:
    """What the runner does with a batch of fill values before it records the forward."""
    fill = backend.get_cuda_graph_seq_len_fill_value()
    dummy = case.Requests([])
    forward_batch = verify_batch(dummy, [fill] * MAX_BATCH, mask)
    backend.init_forward_metadata_out_graph(forward_batch, in_capture=True)
    backend.init_forward_metadata_in_graph(forward_batch)


@PAGES
def test_eager_tree_verify_equals_dense(make: Make, page_size: int) -> None:
    requests, backend, forward_batch = of_trees(make, page_size)
    check_verify(requests, forward(backend, forward_batch))


@PAGES
def test_tree_verify_of_a_padded_graph_batch_equals_dense(make: Make, page_size: int) -> None:
    requests = case.Requests(PREFIX_LENS, page_size)
    backend = make(requests)
    fill = backend.get_cuda_graph_seq_len_fill_value()
    capture(backend, requests, torch.ones(MAX_BATCH * NUM_NODES * (fill + NUM_NODES), dtype=torch.bool))
    seq_lens = [*PREFIX_LENS, fill]
    # The engine pads the mask itself; the padded request's cells are behind those of the real ones.
    mask = case.tree_mask(TREE, seq_lens)
    for _ in range(2):
        forward_batch = verify_batch(requests, seq_lens, mask)
        backend.init_forward_metadata_out_graph(forward_batch)
        check_verify(requests, forward(backend, forward_batch))


@PAGES
def test_extend_over_a_cached_prefix_equals_dense(make: Make, page_size: int) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests = case.Requests([6, 0, 9], page_size)
    backend = make(requests)
    seq_lens = [8, 5, 12]
    forward_batch = case.batch(requests, ForwardMode.EXTEND, seq_lens, 0, prefix_lens=requests.prefix_lens)
    backend.init_forward_metadata(forward_batch)
    out = forward(backend, forward_batch)
    masks = [causal(end - start, end) for start, end in zip(requests.prefix_lens, seq_lens, strict=True)]
    q = case.projections(len(out))[0]
    torch.testing.assert_close(out, case.expected(requests, q, seq_lens, masks), **CLOSE)


def test_decode_equals_dense(make: Make) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests = case.Requests(PREFIX_LENS)
    backend = make(requests)
    ends = [length + 1 for length in PREFIX_LENS]
    forward_batch = case.batch(requests, ForwardMode.DECODE, ends, 0, prefix_lens=PREFIX_LENS)
    backend.init_forward_metadata(forward_batch)
    q, k, v = case.projections(len(ends))
    out = backend.forward_decode(q, k, v, case.layer(), forward_batch)
    masks = [torch.ones(1, length, dtype=torch.bool) for length in ends]
    torch.testing.assert_close(out, case.expected(requests, q, ends, masks), **CLOSE)


def test_cell_of_a_mask_that_hides_an_ancestor_changes_the_rows(make: Make) -> None:
    """The tests above would not see a mask that nobody reads if attention did not depend on it."""
    requests = case.Requests(PREFIX_LENS)
    backend = make(requests)
    mask = case.tree_mask(TREE, PREFIX_LENS)
    mask[3 * (PREFIX_LENS[0] + NUM_NODES) + PREFIX_LENS[0]] = False  # node 3 no longer sees the root
    forward_batch = verify_batch(requests, PREFIX_LENS, mask)
    backend.init_forward_metadata(forward_batch)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_verify(requests, forward(backend, forward_batch))


def test_fa3_page_table_past_its_row_is_a_violation(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request past the context length: its stores would land in the next request's row."""
    requests = case.Requests([case.CONTEXT_LEN, 5])
    backend = maker("fa3", modules, monkeypatch)(requests)
    capture(backend, requests, None)
    seq_lens = [*requests.prefix_lens, 1, 1]
    backend.init_forward_metadata_out_graph(verify_batch(requests, seq_lens, case.tree_mask(TREE, seq_lens)))
    seq_lens[0] += 1
    with pytest.raises(LaneViolation, match=f"stores end within their row of {case.CONTEXT_LEN} tokens"):
        backend.init_forward_metadata_out_graph(verify_batch(requests, seq_lens, case.tree_mask(TREE, seq_lens)))


@pytest.mark.parametrize("host_error", [0, 2])
def test_flashinfer_fast_plan_demands_exact_host_lengths(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, host_error: int
) -> None:
    """A drafter's block is planned from host lengths alone: prefix plus block, exactly."""
    requests = case.Requests(PREFIX_LENS)
    backend = maker("flashinfer", modules, monkeypatch)(requests, is_draft=True)
    capture(backend, requests, None)
    forward_batch = verify_batch(requests, [*PREFIX_LENS, 1], None)
    forward_batch.seq_lens_cpu = forward_batch.seq_lens + NUM_NODES
    forward_batch.seq_lens_cpu[1] += host_error
    (wrapper,) = backend.prefill_cuda_graph_metadata[MAX_BATCH]
    assert wrapper.begin_forward.func is modules["flashinfer"].fast_prefill_plan
    backend.init_forward_metadata_out_graph(forward_batch)
    if host_error:
        with pytest.raises(LaneViolation, match="the kv lengths that the host planned with are the device's"):
            forward(backend, forward_batch, case.layer(is_causal=False))
        return
    out = forward(backend, forward_batch, case.layer(is_causal=False))
    lens = [length + NUM_NODES for length in PREFIX_LENS]
    masks = [torch.ones(NUM_NODES, length, dtype=torch.bool) for length in lens]
    q = case.projections(len(out))[0][: 3 * NUM_NODES]
    torch.testing.assert_close(out[: len(q)], case.expected(requests, q, lens, masks), **CLOSE)


def test_unwritten_slot_under_a_backend_is_a_violation(make: Make) -> None:
    requests, backend, forward_batch = of_trees(make)
    requests.pool.keys[requests.slots(1, 3, 4)] = torch.nan
    with pytest.raises(LaneViolation, match="written by their owner"):
        forward(backend, forward_batch)


SINKS = torch.linspace(-1.0, 2.0, case.HEADS)


def test_sinks_are_counted_once_where_fa3_attends_to_a_tree_in_two_parts(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddtree_sglang.engine.stages.attention_sinks import attending_without_sinks, merging_with_sinks

    requests, backend, forward_batch = of_trees(maker("fa3", modules, monkeypatch))
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    twice = backend.forward_extend(q, k, v, case.layer(), forward_batch, sinks=SINKS)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_verify(requests, twice, SINKS)
    module = modules["fa3"]
    attend = attending_without_sinks(module.FlashAttentionBackend.forward_extend)
    with pytest.raises(RuntimeError, match="its sinks would be missing"):
        attend(backend, q, k, v, case.layer(), forward_batch, sinks=SINKS)
    monkeypatch.setattr(module, "merge_state_v2_wrapper", merging_with_sinks(module.merge_state_v2_wrapper))
    check_verify(requests, attend(backend, q, k, v, case.layer(), forward_batch, sinks=SINKS), SINKS)
    check_verify(requests, attend(backend, q, k, v, case.layer(), forward_batch))


@pytest.mark.parametrize("in_graph", [False, True])
def test_fa3_places_a_window_by_each_nodes_position(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, in_graph: bool
) -> None:
    window, lens = 3, [*PREFIX_LENS]
    requests = case.Requests(PREFIX_LENS)
    backend = maker("fa3", modules, monkeypatch)(requests, window=window)
    if in_graph:
        fill = backend.get_cuda_graph_seq_len_fill_value()
        capture(backend, requests, torch.ones(MAX_BATCH * NUM_NODES * (fill + NUM_NODES), dtype=torch.bool))
        lens.append(fill)
    forward_batch = verify_batch(requests, lens, case.tree_mask(TREE, lens))
    (backend.init_forward_metadata_out_graph if in_graph else backend.init_forward_metadata)(forward_batch)
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    layer, depths = case.layer(), TREE.sum(1) - 1
    layer.sliding_window_size = window
    out = backend.forward_extend(q, k, v, layer, forward_batch, sinks=SINKS)[: len(PREFIX_LENS) * NUM_NODES]

    def allowed(length: int, queries: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([torch.ones(NUM_NODES, length, dtype=torch.bool), TREE], dim=1)
        return seen & (torch.cat([torch.arange(length), length + depths]) >= length + queries[:, None] - window)

    ends = [length + NUM_NODES for length in PREFIX_LENS]
    by_position = [allowed(length, depths) for length in PREFIX_LENS]
    torch.testing.assert_close(out, case.expected(requests, q[: len(out)], ends, by_position, SINKS), **CLOSE)
    by_index = [allowed(length, torch.arange(NUM_NODES)) for length in PREFIX_LENS]
    assert (out - case.expected(requests, q[: len(out)], ends, by_index, SINKS)).abs().max() > 1e-2


@pytest.mark.parametrize("window", [3, None])
def test_flashinfer_lays_a_trees_mask_over_the_keys_of_a_window(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Why a tree's windows are planned anew (test_windows_on_flashinfer.py): the mask is of more keys than are read."""
    requests = case.Requests(PREFIX_LENS)
    backend = maker("flashinfer", modules, monkeypatch)(requests, window=window)
    forward_batch = verify_batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
    misplaced = pytest.raises(LaneViolation, match="a mask has a cell for each row and key of the batch")
    with nullcontext() if window is None else misplaced:
        backend.init_forward_metadata(forward_batch)
        check_verify(requests, forward(backend, forward_batch))


@pytest.mark.parametrize("is_tree", [True, False])
def test_fa3_keeps_a_tree_in_no_chunk_of_its_prompt(
    is_tree: bool, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why attention in chunks is refused: a prompt's tokens see those of their chunk, a tree's nodes see all."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests = case.Requests(PREFIX_LENS)
    backend = maker("fa3", modules, monkeypatch)(requests, chunk=4)
    ends = [length + NUM_NODES for length in PREFIX_LENS]
    forward_batch = (
        verify_batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
        if is_tree
        else case.batch(requests, ForwardMode.EXTEND, ends, 0, prefix_lens=PREFIX_LENS)
    )
    backend.init_forward_metadata(forward_batch)
    layer = case.layer()
    layer.use_irope = True
    out = forward(backend, forward_batch, layer)
    seen = [torch.ones(NUM_NODES, NUM_NODES, dtype=torch.bool).tril()] * len(ends)
    if is_tree:
        check_verify(requests, out)
        return
    whole = [
        torch.cat([torch.ones(NUM_NODES, n, dtype=torch.bool), m], 1) for n, m in zip(PREFIX_LENS, seen, strict=True)
    ]
    assert (out - case.expected(requests, case.projections(len(out))[0], ends, whole)).abs().max() > 1e-2


def test_fa3_does_not_place_a_window_that_it_was_not_told_of(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why windows are refused that a layer has and its class tells SGLang nothing of."""
    requests, backend, forward_batch = of_trees(maker("fa3", modules, monkeypatch))
    layer = case.layer()
    layer.sliding_window_size = 3
    out = forward(backend, forward_batch, layer)
    depths = TREE.sum(1) - 1
    placed = [
        torch.cat([torch.ones(NUM_NODES, length, dtype=torch.bool), TREE], dim=1)
        & (torch.cat([torch.arange(length), length + depths]) >= length + depths[:, None] - 3)
        for length in PREFIX_LENS
    ]
    q, ends = case.projections(len(out))[0], [length + NUM_NODES for length in PREFIX_LENS]
    assert (out - case.expected(requests, q, ends, placed)).abs().max() > 1e-2
