"""Storage behind the host's copies of the prefix cache cannot be attached to a running server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

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
        assert "keys back from storage; start the server without --speculative-algorithm DDTREE" in answer.message


@pytest.mark.parametrize(("is_latent_beside_rank_0", "is_stored"), [(False, True), (True, False)])
def test_sglang_stores_a_drafters_keys_with_the_targets_or_not_at_all(
    is_latent_beside_rank_0: bool, is_stored: bool
) -> None:
    """What the refusal is for: latent rows are the same on all ranks, the drafter's heads are not."""
    from sglang.srt.mem_cache.hicache_storage import PoolName
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    rank = SimpleNamespace(backup_skip=is_latent_beside_rank_0, storage_backend_type="file")
    assert HybridCacheController.should_backup(rank, SimpleNamespace(name=PoolName.DRAFT)) == is_stored
