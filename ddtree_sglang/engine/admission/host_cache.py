"""The hierarchical cache: what left the device comes back from the host, the drafter's keys with the target's.

SGLang copies the drafter's pool beside the target's, by the same slots, because DDTREE says that its drafter is of
DFLASH's family (speculative/base_spec_worker.py, `_build_hicache_draft_plan`). Both copies wait for the stream that
rounds run on. Storage behind the host is another matter, and may be attached to a running server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddtree_sglang.engine.spec import ALGORITHM, is_ddtree

NO_STORAGE = "has not been shown to read the drafter's keys back from storage"


def refuse_storage(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """AROUND hook on `Scheduler.attach_hicache_storage_wrapped`: what is refused at start is refused later, too."""
    from sglang.srt.managers.io_struct import AttachHiCacheStorageReqOutput
    from sglang.srt.runtime_context import get_spec

    if not is_ddtree(get_spec().speculative_algorithm):
        return original(scheduler, request)
    message = f"{ALGORITHM} {NO_STORAGE}; start the server without --speculative-algorithm {ALGORITHM} to attach it."
    return AttachHiCacheStorageReqOutput(success=False, message=message)
