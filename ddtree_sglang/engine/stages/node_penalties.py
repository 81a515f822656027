"""Penalties and minimum lengths of requests: what they emitted, kept where rounds are computed.

SGLang's penalizers learn of tokens from the scheduler, which under overlap knows a round late how many there were, and
with a speculative algorithm counts one per round or none. Here a round counts what it accepts before the next one
begins. The state is indexed by a request's slot, as SGLang's own relay between rounds is (managers/overlap_utils.py,
`FutureMap`): it is read and written by forwards alone, in their order, so batches may be filtered, merged or retracted
meanwhile. A prefill opens a request's row anew; for a request that was retracted it counts the answer so far, which
plain decoding forgets. On a server that decodes what another one prefilled, the first round of a request opens it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.node_penalties import (
    EMITTED,
    END,
    PenaltyState,
    count_tokens,
    counted_penalties,
    penalize_nodes,
)
from ddtree_sglang.core.round_commit import RoundCommit
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.stages.target_choice import LogitsChange

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

FEWEST_ROWS = 8

PENALTIES = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
"""Sampling parameters that change the target's distribution by the tokens before, with the values that are off."""


class Penalties(NamedTuple):
    """What one request asks for."""

    frequency: float
    presence: float
    repetition: float
    min_len: int

    @classmethod
    def of(cls, sampling_params: Any) -> Penalties | None:
        """None for a request that asks for nothing of it."""
        values = [getattr(sampling_params, name) for name in PENALTIES]
        if values == list(PENALTIES.values()) and sampling_params.min_new_tokens <= 0:
            return None
        frequency, presence, repetition = map(float, values)
        return cls(frequency, presence, repetition, int(sampling_params.min_new_tokens))


class _Opened(NamedTuple):
    """A request whose row a prefill opens."""

    place: int  # in the batch
    slot: int
    request: Req
    asked: Penalties


class _Owner(NamedTuple):
    """Who holds a row. Its slot is freed and given to others by SGLang, which tells nobody."""

    row: int
    request: weakref.ref[Req]
    retraction: int  # how often it had been retracted when the row was opened

    @classmethod
    def of(cls, row: int, request: Req) -> _Owner:
        """The row is opened for it now."""
        return cls(row, weakref.ref(request), request.retraction_count)

    def is_still(self, request: Req) -> bool:
        """Whether the row is this request's, and what it counted since was not taken back."""
        return self.retraction == request.retraction_count and self.request() is request

    def is_gone(self, slot: int) -> bool:
        """Whether the request no longer stands in its slot."""
        request = self.request()
        return request is None or request.kv.req_pool_idx != slot


@dataclass
class PenaltyTable:
    """The rows of requests with penalties, made when the first one comes and doubled when they do not suffice."""

    num_slots: int  # of `req_to_token`
    vocab_size: int
    device: torch.device | str
    adopts: bool = False  # another server prefills this one's requests
    _state: PenaltyState | None = None
    _owners: dict[int, _Owner] = field(default_factory=dict)  # by slot
    _free: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, runner: Any, device: torch.device | str) -> PenaltyTable:
        """Of the target's model runner, whose pools are made."""
        from sglang.srt.runtime_context import get_disagg

        num_slots = len(runner.req_to_token_pool.req_to_token)
        return cls(num_slots, runner.model_config.vocab_size, device, get_disagg().disaggregation_mode == "decode")

    def prefill(self, batch: ScheduleBatch) -> None:
        """Open the rows of a prefill's requests, and penalize what it samples for those that emitted tokens before.

        SGLang's own penalties of a prefill begin at zero (sampling_batch_info.py, `from_schedule_batch`), which is
        right for all others. The batch's sampling parameters are the copy that this forward alone reads.
        """
        self._open_rows(batch, *self._sort(batch))

    def _adopt(self, batch: ScheduleBatch) -> None:
        """Open the rows of a round's requests that no prefill of this server opened: another server prefilled them.

        Their first token, or the last one of a request that was retracted, is the root of this round, which counts it.
        What a retracted request's last round counted may have been taken back with it, whatever slot it gets.
        """
        asking, left = self._sort(batch)
        owners = [self._owners.get(one.slot) for one in asking]
        opened = [one for one, owner in zip(asking, owners, strict=True) if not (owner and owner.is_still(one.request))]
        self._open_rows(batch, opened, left, roots=1)

    def _open_rows(self, batch: ScheduleBatch, opened: list[_Opened], left: list[int], roots: int = 0) -> None:
        if not opened and not left:
            return
        for slot in left:
            self._free.append(self._owners.pop(slot).row)
        rows, reclaimed = self._take_rows(opened)
        without = [*left, *reclaimed]
        state = self._state
        assert state is not None, "a row was opened or left"
        self._put(state.slot_rows, [*without, *(one.slot for one in opened)], [*[-1] * len(without), *rows])
        if opened:
            self._open(state, opened, rows, batch.sampling_info, roots)

    def _sort(self, batch: ScheduleBatch) -> tuple[list[_Opened], list[int]]:
        """Requests whose rows are to be opened, and slots whose rows belonged to requests before these."""
        opened, left = [], []
        for place, (request, slot) in enumerate(zip(batch.reqs, batch.req_pool_indices_cpu.tolist(), strict=True)):
            asked = Penalties.of(request.sampling_params)
            if asked is not None:
                opened.append(_Opened(place, slot, request, asked))
            elif slot in self._owners:
                left.append(slot)
        return opened, left

    def _take_rows(self, opened: Sequence[_Opened]) -> tuple[list[int], list[int]]:
        """A row for each, a slot's row staying its own; and the slots that lost theirs to them."""
        wanted = sum(one.slot not in self._owners for one in opened)
        reclaimed: list[int] = []
        if wanted > len(self._free):
            kept = {one.slot for one in opened}
            reclaimed = [slot for slot, owner in self._owners.items() if slot not in kept and owner.is_gone(slot)]
            self._free += [self._owners.pop(slot).row for slot in reclaimed]
        if wanted > len(self._free):
            self._grow(wanted - len(self._free))
        rows = []
        for one in opened:
            owner = self._owners.get(one.slot)
            rows.append(self._free.pop() if owner is None else owner.row)
            self._owners[one.slot] = _Owner.of(rows[-1], one.request)
        return rows, reclaimed

    def _grow(self, missing: int) -> None:
        held = 0 if self._state is None else self._state.num_rows
        num_rows = max(2 * held, held + missing, FEWEST_ROWS)
        if self._state is None:
            self._state = PenaltyState.empty(self.num_slots, num_rows, self.vocab_size, self.device)
        else:
            self._state = self._state.grown(num_rows)
        self._free.extend(range(held, num_rows))

    def _open(
        self, state: PenaltyState, opened: Sequence[_Opened], rows: list[int], sampling_info: Any, roots: int
    ) -> None:
        """Rows as they are before the first token, and then with what was emitted before, less `roots`."""
        at = self._upload(rows)
        # A prefill's own penalties are those of no token at all: minus infinity at the end tokens, else nothing.
        added = sampling_info.acc_additive_penalties.index_select(0, self._upload([one.place for one in opened]))
        state.marks[at] = (added == -torch.inf).to(torch.uint8) * END
        state.sums[at] = 0.0
        asked = [one.asked for one in opened]
        for parameter, values in zip(
            (state.frequency, state.presence, state.repetition),
            zip(*(one[:3] for one in asked), strict=True),
            strict=True,
        ):
            self._put(parameter, rows, values)
        self._put(state.min_lens, rows, [one.min_len for one in asked])
        self._put(state.lens, rows, [len(one.request.output_ids) - roots for one in opened])
        resumed = [(one, row) for one, row in zip(opened, rows, strict=True) if len(one.request.output_ids) > roots]
        if resumed:
            self._resume(state, resumed, roots)
        if resumed and not roots:
            self._tell_sampler(state, resumed, sampling_info)

    def _resume(self, state: PenaltyState, resumed: Sequence[tuple[_Opened, int]], roots: int) -> None:
        """Count answers so far."""
        for one, row in resumed:
            answer = one.request.output_ids
            ids, sums = _answer_sums(answer[: len(answer) - roots], one.asked.frequency)
            at = self._upload(ids)
            state.sums[row].index_copy_(0, at, self._upload(sums, torch.float32))
            state.marks[row].index_copy_(0, at, state.marks[row].index_select(0, at) | EMITTED)

    def _tell_sampler(self, state: PenaltyState, resumed: Sequence[tuple[_Opened, int]], sampling_info: Any) -> None:
        """Let a prefill's sample know of answers so far."""
        additive, scaling = counted_penalties(state, [row for _, row in resumed])
        places = self._upload([one.place for one, _ in resumed])
        sampling_info.acc_additive_penalties.index_copy_(0, places, additive)
        if sampling_info.acc_scaling_penalties is not None:
            sampling_info.acc_scaling_penalties.index_copy_(0, places, scaling)

    def change(self, batch: ScheduleBatch, tree: DraftTree) -> LogitsChange | None:
        """What gives the logits of a round's nodes their penalties; None for a batch without penalties."""
        if not self._has_penalties(batch):
            return None
        if self.adopts:
            self._adopt(batch)
        penalize = penalize_nodes
        if is_device_path():
            from ddtree_sglang.kernels.node_penalties_triton import penalize_nodes_triton as penalize
        assert self._state is not None, "a prefill opened rows"
        return partial(penalize, state=self._state, slots=batch.req_pool_indices, tree=tree)

    def count(self, batch: ScheduleBatch, root_ids: torch.Tensor, commit: RoundCommit) -> None:
        """Count what a round made final: `root_ids [B]` int64, and all that it emits but for the next root."""
        if not self._has_penalties(batch):
            return
        count = count_tokens
        if is_device_path():
            from ddtree_sglang.kernels.node_penalties_triton import count_tokens_triton as count
        assert self._state is not None, "a prefill opened rows"
        count(self._state, batch.req_pool_indices, root_ids, commit.path.token_ids, commit.path.commit_lens)

    @staticmethod
    def _has_penalties(batch: ScheduleBatch) -> bool:
        """SGLang makes its sums for a batch some request of which asks for penalties, and for no other."""
        return batch.sampling_info is not None and batch.sampling_info.acc_additive_penalties is not None

    def _put(self, target: torch.Tensor, places: Sequence[int], values: Sequence[float]) -> None:
        target.index_copy_(0, self._upload(places), self._upload(values, target.dtype))

    def _upload(self, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Values of the host on the device, without waiting for it."""
        from sglang.srt.utils.common import async_h2d

        uploaded: torch.Tensor = async_h2d(values, dtype=dtype, device=self.device)
        return uploaded


def _answer_sums(output_ids: Sequence[int], frequency: float) -> tuple[np.ndarray, np.ndarray]:
    """Distinct tokens of an answer, int64, and each one's sum of penalties, float32, added up one by one."""
    ids, counts = np.unique(np.asarray(output_ids, dtype=np.int64), return_counts=True)
    steps = np.full(int(counts.max()), frequency, dtype=np.float32)
    return ids, np.add.accumulate(steps, dtype=np.float32)[counts - 1]
