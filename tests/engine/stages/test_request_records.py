"""What policy "adaptive" believes of a request."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.core.round_loops import KEPT
from ddtree_sglang.engine.stages.request_records import RequestRecord, ServedRequests
from tests.engine.stages.served_rounds import running_request

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize("usual", [0.6, 1.0])
def test_a_request_is_believed_later_to_keep_more_than_usual_than_to_keep_less(usual: float) -> None:
    def honesty(kept: float) -> float:
        return RequestRecord(np.zeros(1), promised=20.0, kept=kept).honesty(usual)

    as_usual = 20.0 * usual
    assert honesty(as_usual) == pytest.approx(usual)
    assert usual - honesty(as_usual - 6.0) > 1.5 * (honesty(as_usual + 6.0) - usual) > 0
    # A long record is believed both ways.
    long = RequestRecord(np.zeros(1), promised=1000.0, kept=1500.0)
    assert long.honesty(usual) > 1.45


def test_a_batch_is_kept_while_the_same_requests_want_the_same_nodes() -> None:
    first, second = running_request(), running_request()
    held = ServedRequests((1, 2, 3, 5))
    batch = held.batch([first, second], [5, 2])
    assert batch.last.tolist() == [3, 1]
    assert held.batch([first, second], (5, 2)) is batch
    batch.table[1, KEPT] = 7.0
    for reqs, limits in (
        ([second, first], [2, 5]),
        ([second], [2]),
        ([second], [3]),
        ([second, running_request()], [3, 3]),
    ):
        changed = held.batch(reqs, limits)
        assert changed is not batch
        assert changed.table[reqs.index(second), KEPT] == 7.0, "what is known of a request goes with it"
        batch = changed
    batch.table[0, KEPT] = 8.0
    assert held[second].row[KEPT] == 8.0
    assert held[second].seen == 0, "no tree was drafted for it yet"


def test_ended_requests_are_forgotten() -> None:
    held = ServedRequests((1, 2))
    reqs = [running_request(), running_request()]
    held.batch(reqs, [2, 2])
    assert len(held) == 2
    del reqs[:]
    assert len(held) == 0
