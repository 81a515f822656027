"""What policy "adaptive" believes of each request: what was accepted of its trees, and what more nodes would bring."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

import numpy as np

from ddtree_sglang.core import round_loops
from ddtree_sglang.core.round_loops import CURVE, KEPT, PROMISED, SEEN, Floats, Ints

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

NO_HOPE = 0.25
"""Drafted tokens a round that a pair is thought to get before the first tree."""


class RequestRecord:
    """What is known of one request."""

    def __init__(
        self, drafted: Sequence[float] | Floats, promised: float = 0.0, kept: float = 0.0, seen: int = 1
    ) -> None:
        """`drafted [W]`: expected drafted tokens by width; `seen`: widths, from the narrowest on, that a tree was ever
        looked at for.
        """
        self.row: Floats = np.array([promised, kept, seen, *drafted])
        """See `core.round_loops`; a row of the table of the batch that the request is in."""

    def move(self, row: Floats) -> None:
        """`row` has its numbers, and is what changes from now on."""
        self.row = row

    @property
    def drafted(self) -> Floats:
        """`[W]`, followed over its trees."""
        return self.row[CURVE:]

    @property
    def seen(self) -> int:
        """Widths that a tree was ever looked at for; 0: none was drafted yet."""
        return int(self.row[SEEN])

    def honesty(self, usual: float) -> float:
        """See `core.round_loops.honesty`."""
        return float(round_loops.honesty(self.row, usual))

    def follow(self, drafted: Floats, num_seen: int, widths: Ints) -> None:
        """See `core.round_loops.follow_tree`."""
        round_loops.follow_tree(self.row, drafted, num_seen, widths)


class BatchRecords:
    """Of a batch's requests the records, as one table, and the nodes that each allows itself."""

    def __init__(
        self, reqs: Sequence[Req], limits: Sequence[int], records: Sequence[RequestRecord], widths: Sequence[int]
    ) -> None:
        """The records' rows are the table's from now on.

        Raises:
            ValueError: not each request has a limit.
        """
        if len(limits) != len(reqs):
            raise ValueError(f"each of {len(reqs)} requests must have a limit of nodes, got {len(limits)} limits")
        self._reqs = [ref(req) for req in reqs]
        self._limits = tuple(limits)
        self.table: Floats = np.stack([record.row for record in records])  # [B, 3 + W]
        for row, record in zip(self.table, records, strict=True):
            record.move(row)
        self.last: Ints = np.array([bisect_right(widths, limit) - 1 for limit in limits])
        """`[B]`: places of the widest width that each has nodes for."""

    def is_of(self, reqs: Sequence[Req], limits: Sequence[int]) -> bool:
        """Whether these requests come in the same order, with the same limits."""
        if len(reqs) != len(self._reqs) or tuple(limits) != self._limits:
            return False
        for kept, req in zip(self._reqs, reqs, strict=True):  # noqa: SIM110
            if kept() is not req:
                return False
        return True


class ServedRequests:
    """All requests that are alive, and the usual one, which new ones are taken for."""

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = widths
        self._records: WeakKeyDictionary[Req, RequestRecord] = WeakKeyDictionary()
        self._batch: BatchRecords | None = None  # the one that was asked for last
        # Before the first tree a pair is thought to be so-so: it is tried, and not for long.
        self.usual = RequestRecord(NO_HOPE * np.log2(np.array(widths)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, req: Req) -> RequestRecord:
        """No tree was drafted yet for one that was never asked for."""
        if (one := self._records.get(req)) is None:
            one = self._records[req] = RequestRecord(np.zeros(len(self._widths)), seen=0)
        return one

    def batch(self, reqs: Sequence[Req], limits: Sequence[int]) -> BatchRecords:
        """The records of requests that are in a round together, with the nodes that each allows itself."""
        if self._batch is None or not self._batch.is_of(reqs, limits):
            self._batch = BatchRecords(reqs, limits, [self[req] for req in reqs], self._widths)
        return self._batch

    def forget_what_was_kept(self) -> None:
        """Trees are believed as they are, until more is kept."""
        for record in (self.usual, *self._records.values()):
            record.row[[PROMISED, KEPT]] = 0.0
