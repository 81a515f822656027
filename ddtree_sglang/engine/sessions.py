"""Streaming sessions: what a turn leaves behind is what the next one finds written.

SGLang keeps a session's keys and values from turn to turn (session/streaming_session.py) and counts those of a turn's
last token among them: with overlap a round that is still in flight writes them. Nothing says that such a round is in
flight: on the CPU there is none, and a request that ends by its length is left out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def keep_written_tokens(original: Callable[..., bool], sessions: Any, req: Req) -> bool:
    """AROUND hook on `StreamingSession.try_cache_finished_req`: the last token is left to the next turn's prefill.

    A round commits the keys of the tokens before its last one, of target and drafter alike; the last one is the root of
    the next round. The next turn has tokens of its own, so a prefill follows anyway.
    """
    kept = original(sessions, req)
    if kept and serves_ddtree():
        kv = sessions.slots[req.session.session_id].kv
        written = len(req.origin_input_ids) + max(0, len(req.output_ids) - 1)
        kv.kv_committed_len = min(kv.kv_committed_len, written)
    return kept
