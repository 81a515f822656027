"""What ends each request of a batch, as the walk takes it: made when the batch's requests change, not in each round.

The values are those that plain decoding judges its one new token by (managers/schedule_batch.py, `_check_token_based_
finish` and `update_finish_state`). Stop strings and patterns need text, which the host has: `engine.run_ends`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.utils.common import async_h2d

from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.engine.request_options import adapts, bad_options, learns, requested_budget

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def end_token_ids(req: Req) -> list[int]:
    """Tokens that end the request, in ascending order; a client's others, which nothing draws, are left out."""
    if req.sampling_params.ignore_eos:
        return []
    ids = {*(req.sampling_params.stop_token_ids or ()), *(req.eos_token_ids or ())}
    if req.tokenizer is not None:
        ids.update(req.tokenizer.additional_stop_token_ids or ())
        ids.add(req.tokenizer.eos_token_id)
    # Plain decoding looks the token up in a set, where 5.0 and True are numbers too, and anything else does no harm.
    drawable = [token for token in ids if isinstance(token, (int, float)) and 0 <= token < req.vocab_size]
    return sorted({int(token) for token in drawable if token == int(token)})


def limit_len(req: Req) -> int:
    """Committed length at which the request has all tokens that it may have; its newest is not committed yet."""
    return len(req.origin_input_ids) + int(req.sampling_params.max_new_tokens) - 1


def node_limit(req: Req, num_nodes: int) -> int:
    """Nodes of its tree that the request allows itself, root included, at most the server's `num_nodes`.

    What it asked for was looked at before it was scheduled. A processor of its own may write anything there since.
    """
    budget = None if bad_options(req) else requested_budget(req)
    return num_nodes if budget is None else min(budget + 1, num_nodes)


@dataclass(frozen=True, slots=True)
class BatchEnds:
    """The ends of a batch, and the nodes that its requests allow themselves."""

    ends: RoundEnds
    node_limits: tuple[int, ...]
    adapts: bool = True
    """False where every request wants its budget as it is, whatever a policy would choose."""
    learns: bool = True
    """False where no request is a client's, so that its texts say nothing of theirs."""

    @property
    def most_nodes(self) -> int:
        """The most that one of the requests allows itself."""
        return max(self.node_limits, default=1)

    @classmethod
    def of(cls, reqs: Sequence[Req], num_nodes: int, device: torch.device | str) -> BatchEnds:
        """One copy to the device, which nothing waits for."""
        limits = [node_limit(req, num_nodes) for req in reqs]
        end_ids = [end_token_ids(req) for req in reqs]
        width = max(map(len, end_ids), default=0)
        rows = [token for ids in end_ids for token in (*ids, *[-1] * (width - len(ids)))]
        packed = async_h2d([*map(limit_len, reqs), *limits, *rows], dtype=torch.int64, device=device)
        size = len(reqs)
        ends = RoundEnds(packed[2 * size :].view(size, width), packed[:size], packed[size : 2 * size])
        return cls(ends, tuple(limits), any(map(adapts, reqs)), any(map(learns, reqs)))


class EndsOfBatches:
    """The ends of the batch that was asked for last, kept while the same requests come in the same order."""

    def __init__(self, num_nodes: int, device: torch.device | str) -> None:
        self._num_nodes = num_nodes
        self._device = device
        self._reqs: list[weakref.ref[Req]] = []
        self._made: BatchEnds | None = None

    def of(self, reqs: Sequence[Req]) -> BatchEnds:
        """Ends of these requests."""
        same = len(reqs) == len(self._reqs) and all(kept() is req for kept, req in zip(self._reqs, reqs, strict=True))
        if self._made is None or not same:
            self._made = BatchEnds.of(reqs, self._num_nodes, self._device)
            self._reqs = [weakref.ref(req) for req in reqs]
        return self._made
