"""`--enable-mixed-chunk`: which running requests take part in another one's prefill, by a token each.

In such a step a request is sampled by SGLang's prefill, from what the scheduler knows of it. Under overlap that is a
round old, and what a round keeps for a request is not asked: its grammar's state, its penalties', a processor's. So
as long as a running request has any, prefills run alone and all rounds wait for them, as without the flag.

So they do while there are as many running requests as a chunk has tokens. SGLang takes the requests off the chunk: a
prompt whose first part had the chunk to itself would go on with less than nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddtree_sglang.engine.spec import serves_ddtree
from ddtree_sglang.engine.stages.node_penalties import Penalties

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def mix_requests_without_state(original: Callable[..., Any], scheduler: Any, running_batch: ScheduleBatch) -> Any:
    """AROUND hook on `Scheduler.get_new_batch_prefill`: no mixing while a running request has a state of its own, or
    while no token of a chunk would be left.
    """
    if not (scheduler.is_mixed_chunk and serves_ddtree()):
        return original(scheduler, running_batch)
    reqs = running_batch.reqs
    if len(reqs) < scheduler.chunked_prefill_size and not any(map(has_state, reqs)):
        return original(scheduler, running_batch)
    scheduler.is_mixed_chunk = False
    try:
        return original(scheduler, running_batch)
    finally:
        scheduler.is_mixed_chunk = True


def has_state(req: Req) -> bool:
    """Whether a request's next token depends on more than logits, or is answered with more than its id."""
    return (
        req.grammar is not None
        or req.custom_logit_processor is not None
        or bool(req.return_hidden_states)
        or bool(req.return_sampling_mask)
        or Penalties.of(req.sampling_params) is not None
    )
