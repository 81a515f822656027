"""Storage behind the host's copies of the prefix cache: where it is served, and that it cannot be attached later."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize(("algorithm", "is_refused"), [("DDTREE", True), ("DFLASH", False), (None, False)])
def test_storage_is_attached_without_ddtree_alone(
    algorithm: str | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt import runtime_context
    from sglang.srt.managers.io_struct import AttachHiCacheStorageReqInput, AttachHiCacheStorageReqOutput

    from ddtree_sglang.engine.admission.host_cache import refuse_storage

    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    asked: list[Any] = []

    def attach(scheduler: Any, request: Any) -> Any:
        asked.append((scheduler, request))
        return AttachHiCacheStorageReqOutput(success=True)

    request = AttachHiCacheStorageReqInput(hicache_storage_backend="file")
    answer = refuse_storage(attach, "the scheduler", request)
    assert answer.success is not is_refused
    assert asked == ([] if is_refused else [("the scheduler", request)])
    if is_refused:
        assert "give --hicache-storage-backend at its start" in answer.message


@pytest.mark.parametrize(
    ("given", "name", "is_latent", "refused"),
    [
        ({}, "Qwen3ForCausalLM", False, ""),
        ({"hicache_storage_backend": None}, "DeepseekV3ForCausalLM", True, ""),
        ({"hicache_storage_backend": "mooncake"}, "Qwen3ForCausalLM", False, "other than file, got mooncake"),
        ({"attn_dp_size": 2}, "Qwen3ForCausalLM", False, "with --attn-dp-size; remove it"),
        ({"disaggregation_mode": "prefill"}, "Qwen3ForCausalLM", False, "with --disaggregation-mode; remove it"),
        ({"hicache_host_memory_mode": "buffer_only"}, "Qwen3ForCausalLM", False, "with .* buffer_only; remove it"),
        ({}, "DeepseekV3ForCausalLM", True, "beside latent attention"),
        ({}, "NemotronHForCausalLM", False, ""),
        ({}, "Qwen3_5ForConditionalGeneration", False, ""),
    ],
)
def test_storage_is_served_where_it_was_shown(given: dict[str, Any], name: str, is_latent: bool, refused: str) -> None:
    from sglang.srt.configs.model_config import AttentionArch

    from ddtree_sglang.engine.admission.host_cache import check_storage

    plain = {
        "hicache_storage_backend": "file",
        "hicache_host_memory_mode": "cache",
        "attn_dp_size": 1,
        "enable_dp_attention": False,
        "disaggregation_mode": "null",
    }
    model_config = SimpleNamespace(
        attention_arch=AttentionArch.MLA if is_latent else AttentionArch.MHA,
        hf_config=SimpleNamespace(architectures=[name]),
    )
    expected = (
        pytest.raises(DDTreeConfigError, match=f"keys back from storage.*{refused}") if refused else nullcontext()
    )
    with expected:
        check_storage(model_config, SimpleNamespace(**{**plain, **given}))


@pytest.mark.parametrize(("is_latent_beside_rank_0", "is_stored"), [(False, True), (True, False)])
def test_sglang_stores_a_drafters_keys_with_the_targets_or_not_at_all(
    is_latent_beside_rank_0: bool, is_stored: bool
) -> None:
    """What the refusal is for: latent rows are the same on all ranks, the drafter's heads are not."""
    from sglang.srt.mem_cache.hicache_storage import PoolName
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    rank = SimpleNamespace(backup_skip=is_latent_beside_rank_0, storage_backend_type="file")
    assert HybridCacheController.should_backup(rank, SimpleNamespace(name=PoolName.DRAFT)) == is_stored


@pytest.mark.parametrize("is_hierarchical", [True, False])
def test_sglang_tells_no_other_store_of_prefixes_of_a_drafters_keys(
    is_hierarchical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why LMCache, FlexKV and what is registered are refused: what they bring back are the target's keys alone."""
    from sglang.srt.speculative import base_spec_worker as module

    memory = SimpleNamespace(
        enable_hierarchical_cache=is_hierarchical, enable_unified_cache_external_linker=False, radix_cache_backend="own"
    )
    monkeypatch.setattr(module, "get_memory", lambda: memory)
    monkeypatch.setattr(module, "get_disagg", lambda: SimpleNamespace(disaggregation_decode_retraction_backup="none"))
    monkeypatch.setattr(module, "_can_pack_hicache_mtp", lambda *_: False)
    monkeypatch.setattr("sglang.srt.mem_cache.unified_draft_pool.fused_draft_host_allocator", lambda _pool: None)
    target, drafter = SimpleNamespace(spec_algorithm=None), SimpleNamespace(token_to_kv_pool="the drafter's keys")
    worker = SimpleNamespace(target_worker=SimpleNamespace(model_runner=target), _draft_model_runners=lambda: [drafter])
    plan = module.BaseSpecWorker._build_hicache_draft_plan(worker)
    assert plan.device_pools == (("the drafter's keys",) if is_hierarchical else ())
