"""The longest request on a device: two longest paths short of the context, so that no round reads past it.

The last round of a request may accept a whole path of P tokens, and overlap scheduling launches one more before the
host has seen that the request is over; that round's drafter reads a block further, P tokens at most. Attention backends
keep page tables whose rows are as long as the context. FA3 fills the row of a tree's prefix by the length alone
(kernels/ops/attention/trtllm_mha_page_table.py), so what passes its end lands in the row of the next request, which
then attends to another one's keys.

The host's path reads SGLang's request table itself, whose rows have room for two windows behind the context
(`engine.stages.kv_window.row_headroom`), so a request there is as long as in plain decoding.
"""

from __future__ import annotations

import logging
from typing import Any

from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM, is_ddtree, max_path_len
from ddtree_sglang.exceptions import DDTreeConfigError

logger = logging.getLogger(__name__)

STOCK_ROOM = 7
"""Tokens of the context that SGLang keeps from a prompt: one, five for an answer (tp_worker.py, get_worker_info), and
one because a prompt must be shorter than that limit (managers/utils.py, validate_input_length)."""


def reserved_tokens(longest: int) -> int:
    """Tokens at the end of the context that no request reaches, for paths of up to P = `longest` tokens."""
    return 2 * longest if is_device_path() else 0


def check_context_len(context_len: int, longest: int) -> None:
    """Refuse a context that the reserve leaves no prompt of.

    Raises:
        DDTreeConfigError: it is too short.
    """
    shortest = STOCK_ROOM + reserved_tokens(longest) + 1
    if context_len < shortest:
        raise DDTreeConfigError(
            f"the context must have at least {shortest} tokens, two of a round's longest paths of {longest} and a few "
            f"more, got {context_len}; raise --context-length."
        )


def leave_room_for_rounds(_result: None, scheduler: Any) -> None:
    """AFTER hook on `Scheduler.init_model_worker`: lower the two limits that every request is admitted by.

    From them SGLang cuts `max_new_tokens` (init_req_max_new_tokens) and refuses longer prompts with a 400
    (validate_input_length). A KV pool that is smaller than the context may have lowered them already.
    """
    from sglang.srt.runtime_context import get_parallel, get_spec

    spec = get_spec()
    if not is_ddtree(spec.speculative_algorithm):
        return
    context_len = int(scheduler.model_config.context_len)
    reserved = reserved_tokens(max_path_len(spec))
    excess = scheduler.max_req_len - (context_len - 1 - reserved)
    if excess <= 0:
        return
    scheduler.max_req_len -= excess
    scheduler.max_req_input_len -= excess
    if get_parallel().tp_rank == 0:
        logger.info(
            "%s ends an answer when prompt and answer have %d tokens together, and takes prompts of up to %d: %d "
            "tokens at the end of the context of %d are left to rounds that overlap.",
            ALGORITHM,
            scheduler.max_req_len - 1,
            scheduler.max_req_input_len - 1,
            reserved,
            context_len,
        )
