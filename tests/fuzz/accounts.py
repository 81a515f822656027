"""What a server's KV pool holds, as the server itself says, once nobody waits for an answer any more.

`/v1/loads` is what its scheduler last published: of an idle one, the slots of the pool that are neither free nor held
by the prefix cache alone, and the requests. All of them must be 0. After a flush the prefix cache holds none, so 0 then
means that every slot is free. A lost request slot has no number there: an idle scheduler of SGLang that misses one, or
a slot of the pool, ends (managers/scheduler_components/invariant_checker.py), which the canary notices.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tests.fuzz.cases import Case
from tests.fuzz.sending import fetch, send

IDLE_LIMIT_S = 30.0
"""Longest time from the last answer to an idle server: clients that hung up leave requests that end by themselves."""


@dataclass(frozen=True)
class Account:
    """What is in use; of a server with nothing to do, each is 0.

    Attributes:
        kv_slots: tokens of the KV pool that are neither free nor merely cached.
        running: requests in the batch.
        waiting: requests in the queue.
    """

    kv_slots: int
    running: int
    waiting: int

    def is_empty(self) -> bool:
        """Nothing is in use."""
        return self == Account(0, 0, 0)


def account_of_idle(url: str) -> Account:
    """The first account that is empty, or the last one before the limit; none is older than this call.

    Raises:
        TimeoutError: the server published none.
    """
    begun = time.time()
    deadline = time.monotonic() + IDLE_LIMIT_S
    found = None
    while time.monotonic() < deadline:
        loads = fetch(url, "/v1/loads")["loads"]
        if loads and all(load["timestamp"] >= begun for load in loads):
            found = _account(loads)
            if found.is_empty():
                return found
        time.sleep(0.1)
    if found is None:
        raise TimeoutError(f"the server published none for {IDLE_LIMIT_S:.0f} s")
    return found


def flush(url: str) -> bool:
    """Empty the prefix cache; False where the server says that it did not."""
    return send(url, Case(-1, "POST", f"/flush_cache?timeout={IDLE_LIMIT_S:.0f}", b""))[0] == 200


def _account(loads: list[dict[str, Any]]) -> Account:
    names = ("num_used_tokens", "num_running_reqs", "num_waiting_reqs")
    return Account(*(sum(int(load[name]) for load in loads) for name in names))
