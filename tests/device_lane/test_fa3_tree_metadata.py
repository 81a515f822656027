"""FA3's metadata of a tree as the verify graph makes it: what SGLang makes before a replay, and the same attention."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.graphs.fa3_metadata import TreeMetadata
from tests.device_lane import backend_case as case
from tests.device_lane.install import install_fa3
from tests.device_lane.test_backends_on_references import (
    MAX_BATCH,
    NUM_NODES,
    PAGES,
    PREFIX_LENS,
    TREE,
    capture,
    check_verify,
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

FIELDS = ("cache_seqlens_int32", "cu_seqlens_k", "page_table")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """FA3's backend with the reference under it."""
    install_fa3()
    from sglang.srt.layers.attention import flashattention_backend

    return flashattention_backend


def metadata_of(backend: Any) -> dict[str, torch.Tensor]:
    """All that a replay of the largest batch reads, copied."""
    return {
        f"{part} {field}": getattr(getattr(backend, f"target_verify_metadata_topk_{part}")[MAX_BATCH], field).clone()
        for part in ("normal", "expand")
        for field in FIELDS
    }


@PAGES
@pytest.mark.parametrize("prefix_lens", [PREFIX_LENS, [0, 9, 30]])
def test_the_graphs_metadata_is_sglangs(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, prefix_lens: list[int], page_size: int
) -> None:
    requests = case.Requests(prefix_lens, page_size)
    backend = maker("fa3", {"fa3": module}, monkeypatch)(requests)
    fill = backend.get_cuda_graph_seq_len_fill_value()
    capture(backend, requests, torch.ones(MAX_BATCH * NUM_NODES * (fill + NUM_NODES), dtype=torch.bool))
    seq_lens = [*prefix_lens, fill]
    mask = case.tree_mask(TREE, seq_lens)
    forward_batch = verify_batch(requests, seq_lens, mask)
    backend.init_forward_metadata_out_graph(forward_batch)
    expected = metadata_of(backend)
    for part in ("normal", "expand"):
        for field in FIELDS:
            held = getattr(getattr(backend, f"target_verify_metadata_topk_{part}")[MAX_BATCH], field)
            held[int(field == "cu_seqlens_k") :] = 77  # a graph leaves the first cell of prefix sums as it was made

    metadata = TreeMetadata.of(backend)
    assert metadata is not None
    # As a prefill may leave them: with --debug-cuda-graph the captured function runs anew, and reads them from here.
    backend.forward_metadata = backend.forward_metadata_spec_decode_expand = None
    metadata.take_mask(mask)
    metadata.make(forward_batch)
    found = metadata_of(backend)
    num_real = len(prefix_lens) * NUM_NODES
    for name, wanted in expected.items():
        got = found[name]
        if name == "normal page_table":
            # Columns past a prefix are not read, and written by neither.
            for request, length in enumerate(seq_lens):
                pages = -(-length // page_size)
                assert torch.equal(got[request, :pages], wanted[request, :pages]), name
        elif name.startswith("expand"):
            # A padded request's nodes see themselves here, and anything there.
            assert torch.equal(got[:num_real], wanted[:num_real]), name
        else:
            assert torch.equal(got, wanted), name
    check_verify(requests, forward(backend, forward_batch))
