"""Rows of rounds that draft nothing wait, and are written in order before anybody reads or reuses their slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.stages.draft_context import MOST_ROWS, DraftContext, may_wait

pytestmark = pytest.mark.sglang

SLOTS = 2 * MOST_ROWS


class Pool:
    """The drafter's keys: one number a slot."""

    def __init__(self) -> None:
        self.keys = torch.full((SLOTS,), -1.0)
        self.calls = 0

    def append(
        self, *, target_hidden: torch.Tensor, cache_loc: torch.Tensor, positions: torch.Tensor, **_: Any
    ) -> None:
        assert len(target_hidden) == len(cache_loc) == len(positions)
        assert len(set(cache_loc.tolist())) == len(cache_loc), "a slot is written twice at once"
        self.keys[cache_loc] = target_hidden[:, 0]
        self.calls += 1


def told(context: DraftContext, value: float, slots: list[int], batch: object) -> None:
    """A plain round of requests that write these slots."""
    size = len(slots)
    commit: Any = SimpleNamespace(
        context_rows=torch.arange(size).unsqueeze(1),
        context_positions=torch.zeros(size, 1, dtype=torch.int64),
        accept_lens=torch.ones(size, dtype=torch.int32),
    )
    window: Any = SimpleNamespace(num_nodes=1, context_slots=torch.tensor(slots).unsqueeze(1), ends=batch)
    context.extend(commit, window, value + torch.arange(size).unsqueeze(1).float())


def test_rows_wait_until_they_are_asked_for() -> None:
    pool = Pool()
    context, batch = DraftContext(pool.append, waits=True), object()
    for step in range(3):
        told(context, 10.0 * step, [step, 10 + step], batch)
    assert pool.calls == 0
    context.flush()
    assert pool.calls == 1
    assert pool.keys[:3].tolist() == [0, 10, 20]
    assert pool.keys[10:13].tolist() == [1, 11, 21]
    context.flush()
    assert pool.calls == 1


def test_a_slot_that_changed_its_owner_holds_the_newer_ones_key() -> None:
    """A request ended, its slot went to another one of the batch, and no prefill came between."""
    pool = Pool()
    context = DraftContext(pool.append, waits=True)
    told(context, 5.0, [3, 4], object())
    told(context, 7.0, [3], object())
    context.flush()
    assert pool.keys[3] == 7.0
    assert pool.keys[4] == 6.0


def test_no_more_than_so_many_rows_wait() -> None:
    pool = Pool()
    context, batch, size = DraftContext(pool.append, waits=True), object(), MOST_ROWS // 4
    calls = []
    for step in range(4):
        told(context, step, list(range(size * step, size * (step + 1))), batch)
        calls.append(pool.calls)
    assert calls == [0, 0, 0, 1]


def test_without_waiting_each_round_writes() -> None:
    pool = Pool()
    context, batch = DraftContext(pool.append, waits=False), object()
    told(context, 1.0, [1], batch)
    told(context, 2.0, [2], batch)
    assert pool.calls == 2


@pytest.mark.parametrize(
    ("given", "waits"),
    [
        ({}, True),
        ({"scores_pairs": True}, False),
        ({"has_host_cache": True}, False),
        ({"mode": "decode"}, False),
    ],
)
def test_rows_wait_only_where_no_other_party_knows_the_slots(given: dict[str, Any], waits: bool) -> None:
    assert may_wait(**{"scores_pairs": False, "has_host_cache": False, "mode": "null", **given}) is waits
