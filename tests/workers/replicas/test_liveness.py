"""A replica is alive if it made a token lately."""

from __future__ import annotations

from workers.replicas.liveness import ProgressClock


def test_token_counts_for_as_long_as_it_is_fresh() -> None:
    now = [0.0]
    progress = ProgressClock(fresh_s=5.0, clock=lambda: now[0])
    assert progress.never()
    assert not progress.is_fresh()
    progress.token()
    now[0] = 5.0
    assert progress.is_fresh()
    now[0] = 5.1
    assert not progress.is_fresh()
    assert not progress.never()
