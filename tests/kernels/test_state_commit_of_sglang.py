"""SGLang's copies of states, told by us: a request's slot and the prefix cache's get those of the named nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import AcceptedPath

pytestmark = pytest.mark.sglang

LAYERS, REQUESTS, NODES, SLOTS, INTERVAL = 2, 3, 9, 8, 64
# Committed lengths before the round: the second request passes 64 in the middle of its path, the third ends at 64.
PREFIX_LENS = torch.tensor([10, 62, 63])
INDEX = torch.tensor([[0, 3, 7, -1], [0, 2, 5, 8], [0, -1, -1, -1]])
OWN, KEPT = torch.tensor([4, 1, 6]), torch.tensor([2, 3, 7])


@pytest.fixture
def pool(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's form of a pool: states of slots, and of the nodes of the requests of a batch."""
    from sglang.kernels.ops.mamba import mamba_state_scatter_triton

    if device.type == "cpu":
        # The interpreter takes host tensors, the launchers ask for CUDA's.
        for name in ("fused_mamba_state_scatter_with_mask", "fused_conv_window_scatter_with_mask"):
            launch = getattr(mamba_state_scatter_triton, name)
            monkeypatch.setattr(mamba_state_scatter_triton, name, as_on_cuda(launch))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)

    return SimpleNamespace(
        temporal=drawn(LAYERS, SLOTS, 2, 4, 4),
        conv=[drawn(LAYERS, SLOTS, 6, 3)],
        intermediate_ssm=drawn(LAYERS, REQUESTS + 1, NODES, 2, 4, 4),
        intermediate_conv_window=[drawn(LAYERS, REQUESTS + 1, NODES, 6, 3)],
    )


def as_on_cuda(launch: Any) -> Any:
    def launched(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
            launch(*arguments)

    return launched


@pytest.mark.parametrize("tracks", [True, False])
def test_slots_get_the_states_of_the_named_nodes(
    tracks: bool, pool: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import HybridLinearAttnBackend
    from sglang.srt.speculative import spec_utils

    from ddtree_sglang.engine.stages import recurrent_states

    off = SimpleNamespace(conv_state=None, intermediate_conv_state=None, context=None, intermediate_context=None)
    states_pool = SimpleNamespace(
        mamba_pool=SimpleNamespace(),
        short_conv_pool=off,
        ngram_pool=off,
        get_speculative_mamba2_params_all_layers=lambda: pool,
    )
    backend = object.__new__(HybridLinearAttnBackend)
    backend.linear_attn_backend = SimpleNamespace(
        forward_metadata=SimpleNamespace(mamba_cache_indices=OWN.to(device)),
        req_to_token_pool=states_pool,
        accept_lens_pool=None,
        _translate_mamba_indices=lambda indices: indices,
    )
    runner = SimpleNamespace(model_config=None, model=None, attn_backend=backend, req_to_token_pool=states_pool)
    monkeypatch.setattr(spec_utils, "mambaish_config", lambda _: "states")
    monkeypatch.setattr(recurrent_states, "mamba_track_grid", lambda _: INTERVAL)
    batch = SimpleNamespace(
        mamba_track_indices=KEPT.to(device) if tracks else None,
        tree_cache=SimpleNamespace(page_size=1),
        req_pool_indices=torch.arange(REQUESTS, device=device),
        forward_mode=SimpleNamespace(is_idle=lambda: False),
    )
    index = INDEX.to(device)
    lens = (index >= 0).sum(1)
    path = AcceptedPath(index, lens - 1, lens, index, lens)
    before = [pool.temporal.clone(), pool.conv[0].clone()]
    commit: Any = SimpleNamespace(path=path, accept_lens=lens.to(torch.int32))
    worker = SimpleNamespace(model_runner=runner)
    recurrent_states.RecurrentStates(worker).commit(batch, commit, PREFIX_LENS.to(device), NODES)
    last, kept = {0: 7, 1: 8, 2: 0}, {1: 2, 2: 0} if tracks else {}
    of_nodes = (pool.intermediate_ssm, pool.intermediate_conv_window[0])
    for made, was, nodes in zip((pool.temporal, pool.conv[0]), before, of_nodes, strict=True):
        written = {int(OWN[request]): nodes[:, request, node] for request, node in last.items()}
        written |= {int(KEPT[request]): nodes[:, request, node] for request, node in kept.items()}
        for slot in range(SLOTS):
            assert torch.equal(made[:, slot], written.get(slot, was[:, slot])), f"slot {slot}"
