"""`GraphShape.backend` against SGLang's own backends: bytes that `init_cuda_graph_state` allocates, counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.graph_memory import GraphShape
from tests.device_lane import backend_case as case
from tests.device_lane.dense import HEAD_SIZE, HEADS
from tests.device_lane.install import install_fa3, install_flashinfer

pytestmark = pytest.mark.sglang

SHAPE = GraphShape(max_batch=6, context_len=3000, num_heads=HEADS, head_dim=HEAD_SIZE, kv_splits=8)


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """The backends' modules, with the references in place of what needs a GPU's libraries."""
    install_fa3()
    install_flashinfer()
    from sglang.srt.layers.attention import flashattention_backend, flashinfer_backend, triton_backend

    return {"fa3": flashattention_backend, "flashinfer": flashinfer_backend, "triton": triton_backend}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in an attribute, however it holds them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif type(value).__name__ == "VerifyMask":
        yield value.buffer
    elif is_dataclass(value):
        yield from tensors(vars(value))


def held(backend: Any) -> dict[int, int]:
    """Bytes by address of every tensor that a backend holds."""
    return {one.data_ptr(): one.untyped_storage().nbytes() for one in tensors(vars(backend)) if one.numel()}


def new_backend(
    name: str, module: ModuleType, width: int, is_draft: bool, patch: pytest.MonkeyPatch, window: int | None = None
) -> Any:
    """A backend of a server whose verify, or whose drafter, has `width` tokens a request."""
    from sglang.srt.mem_cache import kv_index_translator
    from sglang.srt.speculative import spec_utils

    case.settle(patch, module, width)
    spec = SimpleNamespace(
        speculative_eagle_topk=1 if is_draft or width == 1 else 2,
        speculative_num_draft_tokens=width,
        speculative_algorithm="DFLASH",
    )
    for place in (module, spec_utils):
        patch.setattr(place, "get_spec", lambda: spec, raising=False)
    patch.setattr(kv_index_translator, "get_parallel", lambda: SimpleNamespace(attn_dcp_size=1))
    runner = case.runner(case.Requests([3]), is_draft)
    runner.model_config.context_len, runner.sliding_window_size = SHAPE.context_len, window
    if name != "triton":
        classes = {"fa3": "FlashAttentionBackend", "flashinfer": "FlashInferAttnBackend"}
        return getattr(module, classes[name])(runner)
    backend = object.__new__(module.TritonAttnBackend)
    backend.dllm_attention = backend.swa_v_head_dim = backend.sliding_window_size = None
    backend.skip_prefill = backend.use_sliding_window_kv_pool = False
    backend.device, backend.max_context_len = "cpu", SHAPE.context_len
    backend.num_head, backend.v_head_dim, backend.max_kv_splits = HEADS, HEAD_SIZE, SHAPE.kv_splits
    backend.lean_total_programs = backend.lean_block_m = 1
    backend.is_draft_runner, backend.num_draft_tokens = is_draft, width
    return backend


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
@pytest.mark.parametrize(("width", "is_draft"), [(17, False), (65, False), (1, False), (16, True)])
def test_buffers_of_a_backend_are_what_the_formula_says(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, name: str, width: int, is_draft: bool
) -> None:
    backend = new_backend(name, modules[name], width, is_draft, monkeypatch)
    assert_allocates(backend, width, SHAPE.backend(name, width, is_draft).total)


def test_a_window_gives_each_node_a_page_table_of_its_own(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = new_backend("fa3", modules["fa3"], 17, False, monkeypatch, window=128)
    assert_allocates(backend, 17, replace(SHAPE, has_window=True).backend("fa3", 17).total)


def test_a_window_gives_flashinfers_layers_indices_of_their_own(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = new_backend("flashinfer", modules["flashinfer"], 17, False, monkeypatch, window=128)
    assert_allocates(backend, 17, replace(SHAPE, has_window=True).backend("flashinfer", 17).total)


def assert_allocates(backend: Any, width: int, said: int) -> None:
    """The buffers of its graphs are `said` bytes, and little more: lengths, indptr and the like."""
    before = held(backend)
    backend.init_cuda_graph_state(SHAPE.max_batch, SHAPE.max_batch * width)
    allocated = sum(size for address, size in held(backend).items() if address not in before)
    assert said <= allocated <= said + 64 * SHAPE.max_batch * width + 32 * SHAPE.context_len + 4096
