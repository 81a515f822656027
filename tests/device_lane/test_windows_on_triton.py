"""SGLang's own Triton backend with a tree's windows in a mask: metadata, eager and of a graph, then attention."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.tree_mask import tree_cell_index
from tests.device_lane import backend_case as case
from tests.device_lane.test_backends_on_references import CLOSE, MAX_BATCH, NUM_NODES, PREFIX_LENS, SINKS, TREE

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="the backend's kernels need Triton's interpreter: start pytest with TRITON_INTERPRET=1",
    ),
]

WINDOW = 3


def make(requests: case.Requests, monkeypatch: pytest.MonkeyPatch, is_deterministic: bool = False) -> Any:
    """A backend of a target with windows, changed as a server's is, with buffers for graphs."""
    from sglang.srt.layers.attention import triton_backend

    from ddtree_sglang.engine.stages import window_masks

    case.settle(monkeypatch, triton_backend, NUM_NODES)
    spec = SimpleNamespace(speculative_eagle_topk=2, speculative_num_draft_tokens=NUM_NODES, speculative_num_steps=3)
    execution = SimpleNamespace(
        kernel=SimpleNamespace(
            enable_lean_attention=False, triton_attention_num_kv_splits=1, triton_attention_split_tile_size=None
        ),
        deterministic=SimpleNamespace(enable_deterministic_inference=is_deterministic),
        dllm=SimpleNamespace(dllm_algorithm=None),
    )
    parallel = SimpleNamespace(**vars(triton_backend.get_parallel()), attn_dcp_rank=0)
    for name, answer in (("get_spec", spec), ("get_exec", execution), ("get_parallel", parallel)):
        monkeypatch.setattr(triton_backend, name, lambda answer=answer: answer)
    monkeypatch.setattr(triton_backend, "mambaish_config", lambda config: None)
    monkeypatch.setattr("sglang.srt.mem_cache.kv_index_translator.get_parallel", triton_backend.get_parallel)
    # Assigned for the test alone; a server's stay.
    backend_class = triton_backend.TritonAttnBackend
    for name, ours in (
        ("init_forward_metadata", window_masks.making_masks),
        ("init_forward_metadata_out_graph", window_masks.keeping_masks_of_graphs),
        ("_forward_extend_kernel", window_masks.attending_by_position),
        ("_forward_extend_unified", window_masks.attending_by_position_in_one_go),
    ):
        monkeypatch.setattr(backend_class, name, ours(getattr(backend_class, name)))
    runner = case.runner(requests)
    runner.sliding_window_size, runner.gpu_id = WINDOW, 0
    runner.model_config.swa_v_head_dim = runner.model_config.v_head_dim
    runner.decode_num_tokens_per_req = lambda: NUM_NODES
    runner.token_to_kv_pool.start_layer = 0
    runner.token_to_kv_pool.get_value_buffer = lambda layer: runner.token_to_kv_pool.values
    runner.token_to_kv_pool.get_key_buffer = lambda layer: runner.token_to_kv_pool.keys
    backend = backend_class(runner)
    backend.init_cuda_graph_state(MAX_BATCH, MAX_BATCH * NUM_NODES)
    return backend


def batch(requests: case.Requests, seq_lens: Sequence[int], mask: torch.Tensor) -> SimpleNamespace:
    """A verify forward of the requests at these lengths, and of padded rows behind them."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.speculative.dflash_info import DFlashVerifyInput

    rows = torch.arange(len(requests.prefix_lens) * NUM_NODES)
    spec_info = DFlashVerifyInput(rows, rows, draft_token_num=NUM_NODES, topk=2, custom_mask=mask)
    made = case.batch(requests, ForwardMode.TARGET_VERIFY, seq_lens, NUM_NODES, spec_info)
    # As SGLang makes a verify's; the kernel of deterministic inference finds both itself.
    made.extend_seq_lens = made.extend_prefix_lens = made.extend_start_loc = None
    return made


def tree_cells(prefix_lens: Sequence[int]) -> torch.Tensor:
    """The flat mask with its prefix cells off, which a round leaves as they are."""
    whole = case.tree_mask(TREE, prefix_lens)
    cells = tree_cell_index(torch.tensor(prefix_lens), NUM_NODES).flatten()
    return torch.zeros_like(whole).index_put((cells,), whole[cells])


def expected(requests: case.Requests, q: torch.Tensor, window: int | None) -> torch.Tensor:
    """Dense attention under the ancestor mask, with each node's window at its position."""
    depths = TREE.sum(1) - 1
    masks = []
    for length in requests.prefix_lens:
        allowed = torch.cat([torch.ones(NUM_NODES, length, dtype=torch.bool), TREE], dim=1)
        if window is not None:
            keys, queries = torch.cat([torch.arange(length), length + depths]), length + depths
            allowed &= keys >= queries[:, None] - window
        masks.append(allowed)
    lens = [length + NUM_NODES for length in requests.prefix_lens]
    return case.expected(requests, q[: len(masks) * NUM_NODES], lens, masks, SINKS)


def attend(backend: Any, forward_batch: SimpleNamespace, window: int | None, **options: Any) -> torch.Tensor:
    """`[rows, heads * head size]` of a forward's layer with this window, or none."""
    layer = case.layer()
    layer.sliding_window_size = -1 if window is None else window
    layer.logit_capping_method, layer.xai_temperature_len = "tanh", -1
    q, k, v = case.projections(len(forward_batch.out_cache_loc))
    shaped = (part.view(len(part), -1, case.HEAD_SIZE) for part in (k, v))
    out: torch.Tensor = backend.forward_extend(q, *shaped, layer, forward_batch, **options)
    return out


def check(backend: Any, requests: case.Requests, forward_batch: SimpleNamespace) -> None:
    """A layer with the window, and one without, beside each other."""
    q, _, _ = case.projections(len(forward_batch.out_cache_loc))
    for window in (WINDOW, None):
        out = attend(backend, forward_batch, window, sinks=SINKS)
        real = len(requests.prefix_lens) * NUM_NODES
        torch.testing.assert_close(out[:real], expected(requests, q, window), **CLOSE)


MODES = pytest.mark.parametrize("is_deterministic", [False, True])


@MODES
@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, [1, 2, 30]])
def test_eager_verify_places_windows_by_position(
    prefix_lens: list[int], is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = case.Requests(prefix_lens)
    backend = make(requests, monkeypatch, is_deterministic)
    # The kernel of deterministic inference reads prefix cells, too, where a layer has no window.
    mask = case.tree_mask(TREE, prefix_lens) if is_deterministic else tree_cells(prefix_lens)
    forward_batch = batch(requests, prefix_lens, mask)
    backend.init_forward_metadata(forward_batch)
    check(backend, requests, forward_batch)


@MODES
def test_a_graphs_verify_places_windows_by_position(is_deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured with fill values, then replayed twice with a padded request: by hand, in the order of a graph runner."""
    from ddtree_sglang.engine.stages.window_masks import fill_window_mask

    requests = case.Requests(PREFIX_LENS)
    backend = make(requests, monkeypatch, is_deterministic)
    fill = backend.get_cuda_graph_seq_len_fill_value()
    dummy = batch(case.Requests([]), [fill] * MAX_BATCH, backend.verify_mask.buffer)
    backend.init_forward_metadata_out_graph(dummy, in_capture=True)
    lens = [*PREFIX_LENS, fill]
    for _ in range(2):
        mask = case.tree_mask(TREE, lens) if is_deterministic else tree_cells(lens)
        forward_batch = batch(requests, lens, mask.to(torch.uint8))
        backend.init_forward_metadata_out_graph(forward_batch)
        fill_window_mask(backend, forward_batch)
        check(backend, requests, forward_batch)


def test_a_mask_of_another_forward_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a verify comes a prefill, whose rows are a text: the kernel's own window is right there."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    requests = case.Requests(PREFIX_LENS)
    backend = make(requests, monkeypatch)
    backend.init_forward_metadata(batch(requests, PREFIX_LENS, tree_cells(PREFIX_LENS)))
    ends = [length + 4 for length in PREFIX_LENS]
    forward_batch = case.batch(requests, ForwardMode.EXTEND, ends, 0, prefix_lens=PREFIX_LENS)
    backend.init_forward_metadata(forward_batch)
    q, _, _ = case.projections(len(forward_batch.out_cache_loc))
    out = attend(backend, forward_batch, WINDOW)
    masks = []
    for length, end in zip(PREFIX_LENS, ends, strict=True):
        distance = torch.arange(length, end)[:, None] - torch.arange(end)
        masks.append((distance >= 0) & (distance <= WINDOW))
    torch.testing.assert_close(out, case.expected(requests, q, ends, masks), **CLOSE)


def test_a_shorter_window_beside_the_servers_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why windows of several lengths are refused here: one mask is laid on all layers that have any."""
    requests = case.Requests(PREFIX_LENS)
    backend = make(requests, monkeypatch)
    forward_batch = batch(requests, PREFIX_LENS, tree_cells(PREFIX_LENS))
    backend.init_forward_metadata(forward_batch)
    q, _, _ = case.projections(len(forward_batch.out_cache_loc))
    out = attend(backend, forward_batch, WINDOW - 1, sinks=SINKS)
    assert (out - expected(requests, q, WINDOW - 1)).abs().max() > 1e-2
