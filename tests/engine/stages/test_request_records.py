"""What policy "adaptive" believes of a request."""

from __future__ import annotations

import numpy as np
import pytest

from ddtree_sglang.engine.stages.request_records import RequestRecord


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
