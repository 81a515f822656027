"""How many nodes a tree may have where each keeps a recurrent state: what the GPU's memory leaves for them.

SGLang keeps a few states of each request for its prefix cache, and one for each node of a request that runs
(mem_cache/memory_pool.py, MambaPool). How many requests run at once follows from what they take together
(mem_cache/kv_cache_configurator.py, `_handle_max_mamba_cache`): it lowers their number with a warning that says nothing
of nodes. Where the number of states is given, or is that of the requests, it keeps room for all requests, its default
of 48 included; if that leaves nothing to keys and values it ends and blames the weights.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.config import REQUESTS_BY_DEFAULT_ENV
from ddtree_sglang.engine.spec import ALGORITHM, serves_ddtree
from ddtree_sglang.exceptions import DDTreeConfigError

logger = logging.getLogger(__name__)

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class StateMemory:
    """Memory of one GPU beside weights and activations, and what states take of it, in bytes.

    Attributes:
        free: for states of requests and nodes, and for keys and values.
        of_node: a node's state in all layers; that of a request is as large.
        of_slot: a request's state with what SGLang keeps beside it.
        slots_per_request: states of requests for each one that runs; the others are the prefix cache's.
        share: of `free` that states may take, where their number follows from it.
        slots: states of requests, where their number is given.
        is_one_each: a request has one state and the prefix cache none, so that their number is that of the requests.
    """

    free: float
    of_node: int
    of_slot: int
    slots_per_request: int
    share: float
    slots: int | None = None
    is_one_each: bool = False

    def requests(self, num_nodes: int) -> int:
        """Most requests of trees of `num_nodes` each that there is memory for."""
        # Both pools have a row for padding (memory_pool.py).
        if self.is_one_each and self.slots is None:
            return self._below(self.free, self.of_slot + self.of_node * num_nodes) - 1
        if self.slots is not None:
            left = self.free - (self.slots + 1) * self.of_slot
            fitting = self._below(left, self.of_node * num_nodes) - 1
            return max(0, min(self.slots // self.slots_per_request, fitting))
        of_padding = self.of_slot + self.of_node * num_nodes
        of_one = self.of_slot + self.of_node * num_nodes / self.slots_per_request
        return max(0, int((self.free * self.share - of_padding) // of_one) // self.slots_per_request)

    @staticmethod
    def _below(total: float, of_one: int) -> int:
        """How many leave something of `total` to keys and values."""
        return max(1, -int(-total // of_one) - 1)

    def most_nodes(self, requests: int, num_nodes: int) -> int:
        """Most nodes of a tree, up to `num_nodes`, with which so many requests fit; 0 if not even one does."""
        return next((count for count in range(num_nodes, 0, -1) if self.requests(count) >= requests), 0)

    @property
    def most_requests(self) -> int:
        """Requests for which there are states, with memory for any number of nodes."""
        return sys.maxsize if self.slots is None else self.slots // self.slots_per_request

    @property
    def is_kept_for_all(self) -> bool:
        """Whether SGLang keeps room for all requests, however many fit; states then have no part for themselves."""
        return self.slots is not None or self.is_one_each

    @property
    def for_states(self) -> float:
        """What `what` may take together."""
        return self.free if self.is_kept_for_all else self.free * self.share

    @property
    def what(self) -> str:
        """What `for_states` is for."""
        return "states, keys and values" if self.is_kept_for_all else "states"

    @property
    def flags(self) -> str:
        """What gives states more memory."""
        return "--mem-fraction-static" if self.is_kept_for_all else "--mem-fraction-static, --mamba-full-memory-ratio"


def limit_nodes(original: Callable[..., float], configurator: Any, total_rest_memory: float) -> float:
    """AROUND hook on `KVCacheConfigurator._handle_max_mamba_cache`: see that nodes and requests fit together.

    Args:
        configurator: of the target; a drafter keeps no such states.
        total_rest_memory: GiB.

    Raises:
        DDTreeConfigError: fewer requests fit than were asked for, or than SGLang keeps room for, or none.
    """
    if serves_ddtree():
        from sglang.srt.runtime_context import get_schedule, get_spec

        check_state_memory(
            _memory_of(configurator, total_rest_memory * GIB),
            num_nodes=int(get_spec().speculative_num_draft_tokens),
            requests=int(get_schedule().max_running_requests),
            is_asked=_is_asked(configurator.server_args),
        )
    return original(configurator, total_rest_memory)


def _is_asked(server_args: Any) -> bool:
    """Whether somebody named a number of requests. Arguments stay as they were given; the workers always give one."""
    return server_args.max_running_requests is not None and os.environ.get(REQUESTS_BY_DEFAULT_ENV) != "1"


def _memory_of(configurator: Any, free: float) -> StateMemory:
    from sglang.srt.runtime_context import get_memory, get_schedule

    schedule = get_schedule()
    of_node = int(configurator.mambaish_config.mamba2_cache_params.mamba_cache_per_req)
    ratio = float(schedule.mamba_full_memory_ratio)
    return StateMemory(
        free=free,
        of_node=of_node,
        of_slot=of_node + int(configurator.extra_mamba_cache_bytes_per_req),
        slots_per_request=int(configurator._calculate_mamba_ratio()),
        share=ratio / (1 + ratio),
        slots=schedule.max_mamba_cache_size,
        is_one_each=bool(get_memory().disable_radix_cache),
    )


def check_state_memory(memory: StateMemory, *, num_nodes: int, requests: int, is_asked: bool) -> None:
    """Refuse more nodes than requests leave room for; where SGLang runs fewer than its default, say how many.

    Args:
        num_nodes: N of the largest tree, the root included.
        requests: at once.
        is_asked: the user named their number, which is then a promise.

    Raises:
        DDTreeConfigError: fewer fit than were asked for, or than SGLang keeps room for, or none.
    """
    # Whatever nodes take, a given number of states is enough for no more; of that SGLang itself warns.
    requests = min(requests, memory.most_requests)
    fitting = memory.requests(num_nodes)
    if fitting >= requests:
        return
    found = (
        f"{ALGORITHM} keeps the target's recurrent state at every node, {memory.of_node / MIB:.3f} MiB a node and "
        f"request on each GPU, and there are {memory.for_states / GIB:.3f} GiB for {memory.what}"
    )
    budget = num_nodes - 1
    more = f"give states more memory ({memory.flags})"
    is_lowered = not is_asked and not memory.is_kept_for_all
    if is_lowered and fitting > 0:
        most = memory.most_nodes(requests, num_nodes) - 1
        less = f"set --speculative-ddtree-budget {most} or less" if most > 0 else "lower --speculative-ddtree-budget"
        logger.warning(
            "%s, so that with trees of %d nodes SGLang runs %d of its default of %d requests at once. For more %s.",
            found,
            budget,
            fitting,
            requests,
            f"{less} or {more}",
        )
        return
    if is_lowered:
        requests = 1
    most = memory.most_nodes(requests, num_nodes) - 1
    most_of_one = memory.most_nodes(1, num_nodes) - 1
    advice = [f"set --speculative-ddtree-budget {most} or less"] if most > 0 else []
    if fitting > 0:
        advice.append(f"set --max-running-requests {fitting} or less")
    elif most_of_one > max(0, most):
        advice.append(f"set --max-running-requests 1 and --speculative-ddtree-budget {most_of_one} or less")
    if memory.slots is not None:
        advice.append("lower --max-mamba-cache-size")
    by_default = "" if is_asked or is_lowered else " that SGLang keeps room for by default"
    raise DDTreeConfigError(
        f"{found}: with trees of {budget} nodes {fitting} of {requests} requests{by_default} fit at once, with "
        f"{f'{most} nodes at most' if most > 0 else 'no tree'} all of them; {', or '.join([*advice, more])}."
    )
