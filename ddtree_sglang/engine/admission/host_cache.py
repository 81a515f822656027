"""The hierarchical cache: what left the device comes back from the host, the drafter's keys with the target's.

SGLang copies the drafter's pool beside the target's, by the same slots, because DDTREE says that its drafter is of
DFLASH's family (speculative/base_spec_worker.py, `_build_hicache_draft_plan`). Both copies wait for the stream that
rounds run on. Storage behind the host has pages of the drafter's, too, and a text is only found there if it has them
all (mem_cache/hybrid_cache/hybrid_cache_controller.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddtree_sglang.engine.admission.attention_groups import attends_in_groups
from ddtree_sglang.engine.admission.split_servers import is_split
from ddtree_sglang.engine.spec import ALGORITHM, serves_ddtree
from ddtree_sglang.exceptions import DDTreeConfigError

STORAGE = "file"
"""SGLang's backend of storage that was run; others keep a drafter's pages in ways of their own, or not at all."""

_NOT_SHOWN = f"{ALGORITHM} has not been shown to read the drafter's keys back from storage"


def check_storage(model_config: Any, cfg: Any) -> None:
    """Behind a hierarchical cache, refuse storage that has not been shown to bring the drafter's keys back.

    Args:
        model_config: SGLang's `ModelConfig` of the target.
        cfg: the resolved arguments.

    Raises:
        DDTreeConfigError: another backend of storage than `STORAGE`; DP attention, split servers, or a host that keeps
            nothing itself; or latent attention, of which other ranks than the first store nothing of a drafter's, and a
            scene of one rank found nothing again.
    """
    from sglang.srt.configs.model_config import AttentionArch

    backend = cfg.hicache_storage_backend
    if backend is None:
        return
    if backend != STORAGE:
        raise DDTreeConfigError(f"{_NOT_SHOWN} other than {STORAGE}, got {backend}; change --hicache-storage-backend.")
    layouts = {
        "--attn-dp-size": attends_in_groups(cfg),
        "--disaggregation-mode": is_split(cfg),
        "--hicache-host-memory-mode buffer_only": cfg.hicache_host_memory_mode == "buffer_only",
    }
    for flag, is_given in layouts.items():
        if is_given:
            raise DDTreeConfigError(f"{_NOT_SHOWN} with {flag}; remove it, or --hicache-storage-backend.")
    if model_config.attention_arch == AttentionArch.MLA:
        raise DDTreeConfigError(f"{_NOT_SHOWN} beside latent attention; remove --hicache-storage-backend.")


def refuse_storage(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """AROUND hook on `Scheduler.attach_hicache_storage_wrapped`: a server has its storage from the start, or none."""
    from sglang.srt.managers.io_struct import AttachHiCacheStorageReqOutput

    if not serves_ddtree():
        return original(scheduler, request)
    message = f"{_NOT_SHOWN} that is attached to a running server; give --hicache-storage-backend at its start."
    return AttachHiCacheStorageReqOutput(success=False, message=message)


def keeps_keys_in_files() -> bool:
    """Whether this server is one of DDTREE's with storage, whose files know nothing of new weights."""
    from sglang.srt.runtime_context import get_memory

    return serves_ddtree() and get_memory().hicache_storage_backend is not None
