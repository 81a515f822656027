"""SGLang's own FlashInfer backend with a tree's windows in a mask: metadata, eager and of a graph, then attention."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.stages import flashinfer_windows
from tests.device_lane import backend_case as case
from tests.device_lane.test_backends_on_references import (
    CLOSE,
    MAX_BATCH,
    NUM_NODES,
    PREFIX_LENS,
    TREE,
    maker,
    modules,
)
from tests.device_lane.violations import LaneViolation

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="the backend's kernels need Triton's interpreter: start pytest with TRITON_INTERPRET=1",
    ),
]
__all__ = ["modules"]

WINDOW = 3
DEPTHS = TREE.sum(1) - 1
LONG_AND_SHORT = [1, 2, 30]
CHANGES = {"call_begin_forward": "planning_by_position", "_create_prefill_wrappers": "dividing_masks"}


@pytest.fixture
def make(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a backend of a target with windows, changed as a server's is but for what is `left`."""

    def made(requests: case.Requests, left: str = "") -> Any:
        module = modules["flashinfer"]
        for owner in (module.FlashInferIndicesUpdaterPrefill, module.FlashInferAttnBackend):
            for name, ours in CHANGES.items():
                if hasattr(owner, name) and name != left:
                    # For the test alone; a server's stay.
                    monkeypatch.setattr(owner, name, getattr(flashinfer_windows, ours)(getattr(owner, name)))
        return maker("flashinfer", modules, monkeypatch)(requests, window=WINDOW)

    return made


def tree_input(mask: torch.Tensor | None, num_trees: int | None) -> Any:
    """A round's verify input of as many trees, or a capture's, of which nothing is known."""
    from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput

    num_nodes = NUM_NODES if mask is not None else 1
    links = None if num_trees is None else torch.zeros(num_trees, num_nodes, dtype=torch.int64)
    return DDTreeVerifyInput(
        draft_token=None,
        custom_mask=mask,
        positions=None,
        retrieve_index=links,
        retrieve_next_token=links,
        retrieve_next_sibling=links,
        retrieve_cum_len=None,
        spec_steps=3,
        topk=2,
        draft_token_num=num_nodes,
        capture_hidden_mode=None,
        seq_lens_sum=None,
        seq_lens_cpu=None,
    )


def batch(
    requests: case.Requests, seq_lens: Sequence[int], mask: torch.Tensor | None, captures: bool = False
) -> SimpleNamespace:
    """A verify forward of the requests at these lengths, and of padded rows behind them."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    tree = tree_input(mask, None if captures else len(requests.prefix_lens))
    return case.batch(requests, ForwardMode.TARGET_VERIFY, seq_lens, tree.draft_token_num, tree)


def layer_of(window: int | None) -> SimpleNamespace:
    layer = case.layer()
    layer.sliding_window_size = -1 if window is None else window
    return layer


def expected(
    requests: case.Requests, q: torch.Tensor, window: int | None, tree: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Dense attention under the ancestor mask, with each node's window behind its place among the nodes."""
    masks = []
    for length in requests.prefix_lens:
        allowed = torch.cat([torch.ones(len(tree), length, dtype=torch.bool), tree], dim=1)
        if window is not None:
            allowed &= torch.cat([torch.arange(length), length + places]) >= length + places[:, None] - window
        masks.append(allowed)
    lens = [length + len(tree) for length in requests.prefix_lens]
    return case.expected(requests, q[: len(masks) * len(tree)], lens, masks)


def attended(backend: Any, forward_batch: SimpleNamespace, window: int | None) -> torch.Tensor:
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    out: torch.Tensor = backend.forward_extend(q, k, v, layer_of(window), forward_batch)
    return out


def check(backend: Any, requests: case.Requests, forward_batch: SimpleNamespace, tree: torch.Tensor = TREE) -> None:
    """A layer with the window, and one without, beside each other."""
    q, depths = case.projections(len(forward_batch.out_cache_loc))[0], tree.sum(1) - 1
    for window in (WINDOW, None):
        out = attended(backend, forward_batch, window)  # writes the keys
        wanted = expected(requests, q, window, tree, depths)
        torch.testing.assert_close(out[: len(wanted)], wanted, **CLOSE)


def capture(backend: Any, is_chain: bool = False) -> None:
    """What the runner does with a batch of fill values before it records the forward."""
    fill = backend.get_cuda_graph_seq_len_fill_value()
    cells = None if is_chain else torch.ones(MAX_BATCH * NUM_NODES * (fill + NUM_NODES), dtype=torch.bool)
    forward_batch = batch(case.Requests([]), [fill] * MAX_BATCH, cells, captures=True)
    backend.init_forward_metadata_out_graph(forward_batch, in_capture=True)
    backend.init_forward_metadata_in_graph(forward_batch)


def replayed(backend: Any, requests: case.Requests, prefix_lens: Sequence[int]) -> SimpleNamespace:
    """The next round in the graph, with a padded request behind, of which a round's mask has no cells."""
    forward_batch = batch(requests, [*prefix_lens, 1], case.tree_mask(TREE, prefix_lens))
    backend.init_forward_metadata_out_graph(forward_batch)
    return forward_batch


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, LONG_AND_SHORT])
def test_eager_verify_places_windows_by_position(
    make: Callable[..., Any], prefix_lens: list[int], page_size: int
) -> None:
    requests = case.Requests(prefix_lens, page_size)
    backend = make(requests)
    forward_batch = batch(requests, prefix_lens, case.tree_mask(TREE, prefix_lens))
    backend.init_forward_metadata(forward_batch)
    check(backend, requests, forward_batch)
    q = case.projections(len(forward_batch.out_cache_loc))[0]
    by_index = expected(requests, q, WINDOW, TREE, torch.arange(NUM_NODES))
    assert (attended(backend, forward_batch, WINDOW) - by_index).abs().max() > 1e-2


@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, LONG_AND_SHORT])
def test_a_graphs_verify_places_windows_by_position(make: Callable[..., Any], prefix_lens: list[int]) -> None:
    requests = case.Requests(prefix_lens)
    backend = make(requests)
    capture(backend)
    for _ in range(2):
        check(backend, requests, replayed(backend, requests, prefix_lens))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, LONG_AND_SHORT])
def test_a_chain_of_one_node_sees_its_window(make: Callable[..., Any], prefix_lens: list[int], in_graph: bool) -> None:
    requests = case.Requests(prefix_lens)
    backend = make(requests)
    if in_graph:
        capture(backend, is_chain=True)
        forward_batch = batch(requests, [*prefix_lens, 1], None)
        backend.init_forward_metadata_out_graph(forward_batch)
    else:
        forward_batch = batch(requests, prefix_lens, None)
        backend.init_forward_metadata(forward_batch)
    check(backend, requests, forward_batch, torch.ones(1, 1, dtype=torch.bool))


def test_a_graphs_wrappers_would_read_one_buffer_of_masks(make: Callable[..., Any]) -> None:
    """What the division is for: the wrapper without a window is planned last, into what the other one reads."""
    requests = case.Requests(LONG_AND_SHORT)
    backend = make(requests, left="_create_prefill_wrappers")
    capture(backend)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check(backend, requests, replayed(backend, requests, LONG_AND_SHORT))


def test_sglangs_own_plan_lays_the_mask_of_all_keys_over_those_of_a_window(make: Callable[..., Any]) -> None:
    requests = case.Requests(PREFIX_LENS)
    backend = make(requests, left="call_begin_forward")
    with pytest.raises(LaneViolation, match="a mask has a cell for each row and key of the batch"):
        backend.init_forward_metadata(batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS)))


def test_the_kernel_would_be_handed_the_window_as_well(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it would place by index, from a plan that knows of none."""
    monkeypatch.setattr(
        flashinfer_windows,
        "_forward_without_window",
        lambda wrapper, *rows, **options: type(wrapper).forward(wrapper, *rows, **options),
    )
    requests = case.Requests(PREFIX_LENS)
    backend = make(requests)
    forward_batch = batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
    backend.init_forward_metadata(forward_batch)
    with pytest.raises(LaneViolation, match="compiled with window=False"):
        attended(backend, forward_batch, WINDOW)


def test_a_shorter_window_beside_the_servers_is_not_placed(make: Callable[..., Any]) -> None:
    """Why windows of several lengths are refused here: one mask is laid on all layers that have any."""
    requests = case.Requests(PREFIX_LENS)
    backend = make(requests)
    forward_batch = batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
    backend.init_forward_metadata(forward_batch)
    q = case.projections(len(forward_batch.out_cache_loc))[0]
    out = attended(backend, forward_batch, WINDOW - 1)
    assert (out - expected(requests, q, WINDOW - 1, TREE, DEPTHS)).abs().max() > 1e-2


def extend(make: Callable[..., Any], prefix_lens: list[int], *, is_paged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A prefill of eight tokens behind each of the prefixes in a layer with the window, and what it should give."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests = case.Requests(prefix_lens)
    backend = make(requests)
    backend.use_paged = is_paged
    ends = [length + 8 for length in prefix_lens]
    forward_batch = case.batch(requests, ForwardMode.EXTEND, ends, 0, prefix_lens=prefix_lens)
    backend.init_forward_metadata(forward_batch)
    out = attended(backend, forward_batch, WINDOW)
    masks = []
    for length, end in zip(prefix_lens, ends, strict=True):
        distance = torch.arange(length, end)[:, None] - torch.arange(end)
        masks.append((distance >= 0) & (distance <= WINDOW))
    return out, case.expected(requests, case.projections(len(out))[0], ends, masks)


@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, [0, 0, 0]])
def test_a_prefill_that_reads_all_keys_from_the_pool_keeps_to_the_window(
    make: Callable[..., Any], prefix_lens: list[int]
) -> None:
    torch.testing.assert_close(*extend(make, prefix_lens, is_paged=True), **CLOSE)


def test_sglangs_other_prefills_leave_the_window_out(make: Callable[..., Any]) -> None:
    """Why windows are refused here without SGLANG_FLASHINFER_USE_PAGED: of a prompt, all tokens see all before them."""
    out, wanted = extend(make, [0, 0, 0], is_paged=False)
    assert (out - wanted).abs().max() > 1e-2
    with pytest.raises(LaneViolation, match="compiled with window=False"):
        extend(make, PREFIX_LENS, is_paged=False)
