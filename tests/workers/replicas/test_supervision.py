"""How often replicas may start again, and when one is alive."""

from __future__ import annotations

import pytest

from workers.replicas.supervision import RestartBudget, RestartBudgetSpentError, TokenClock


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_first_replicas_start_at_once() -> None:
    budget = RestartBudget(expected=2, budget=1, window_s=60)
    assert [budget.start(), budget.start()] == [0.0, 0.0]


def test_restarts_wait_longer_and_longer_up_to_half_a_minute() -> None:
    budget = RestartBudget(expected=0, budget=9, window_s=60, clock=Clock())
    assert [budget.start() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_spent_budget_refuses_and_says_what_to_do() -> None:
    budget = RestartBudget(expected=1, budget=2, window_s=60, clock=Clock())
    for _ in range(3):
        budget.start()
    with pytest.raises(RestartBudgetSpentError, match=r"2 times in 60 s.*restart_budget"):
        budget.start()


def test_restarts_are_forgotten_after_the_window() -> None:
    clock = Clock()
    budget = RestartBudget(expected=0, budget=1, window_s=60, clock=clock)
    budget.start()
    clock.now = 61.0
    assert budget.start() == 1.0


def test_retired_replica_may_be_replaced_for_nothing() -> None:
    budget = RestartBudget(expected=1, budget=1, window_s=60, clock=Clock())
    budget.start()
    budget.retired()
    assert budget.start() == 0.0


def test_token_counts_for_as_long_as_it_is_fresh() -> None:
    now = [0.0]
    progress = TokenClock(fresh_s=5.0, clock=lambda: now[0])
    assert progress.never()
    assert not progress.is_fresh()
    progress.token()
    now[0] = 5.0
    assert progress.is_fresh()
    now[0] = 5.1
    assert not progress.is_fresh()
    assert not progress.never()
