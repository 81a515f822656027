"""What targets are refused for on a CPU: with the refusal taken away, where a forward of theirs ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from ddtree_sglang.cpu_platform.attention import backend as module
from tests.cpu_platform import attention_cases as cases

pytestmark = pytest.mark.sglang


def test_latent_rows_are_written_by_no_backend_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why latent attention is refused before its weights are loaded: the backend ends over it, and its pool would."""
    pool = MLATokenToKVPool(cases.NUM_SLOTS, 1, torch.float32, 8, 8, 1, "cpu", False)
    bench = cases.make_bench([3], [2])
    runner: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "token_to_kv_pool": pool}
    runner["req_to_token_pool"] = SimpleNamespace(req_to_token=bench.req_to_token)
    with pytest.raises(ValueError, match="serves multi-head attention, and this model uses latent attention"):
        module.DDTreeCpuAttnBackend(SimpleNamespace(**runner, use_mla_backend=True))
    monkeypatch.setattr(module, "_refuse_unknown_pool", lambda _pool: None)
    bench.backend = module.DDTreeCpuAttnBackend(SimpleNamespace(**runner, use_mla_backend=False))
    with pytest.raises(AttributeError, match="'MLATokenToKVPool' object has no attribute 'write_rows'"):
        cases.run(bench, ForwardMode.EXTEND)


@pytest.mark.parametrize("kind", ["states", "convolutions"])
def test_sglang_commits_no_accepted_nodes_state_on_a_cpu(kind: str) -> None:
    """Why recurrent layers are refused, of LFM2 whose convolutions are all that it keeps, too."""
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import scatter_mamba_states_after_mtp_verify

    num_layers, num_slots, num_nodes = 1, 4, 5
    kept, of_nodes = torch.zeros(num_layers, num_slots, 8, 3), torch.ones(num_layers, num_slots, num_nodes, 8, 3)
    has_states = kind == "states"
    caches = SimpleNamespace(
        temporal=kept if has_states else kept[..., :0],
        intermediate_ssm=of_nodes if has_states else None,
        conv=[] if has_states else [kept],
        intermediate_conv_window=[] if has_states else [of_nodes],
    )
    with pytest.raises(ValueError, match="CUDA/XPU tensors"):
        scatter_mamba_states_after_mtp_verify(caches, torch.tensor([1]), torch.tensor([2]), None, None)
    assert not kept.any()
