"""How far the replicas of a starting application are, in a phrase."""

from __future__ import annotations

from workers.replicas.supervision import FIRST_TOKEN, IMPORTING, LOADING, READY, Supervisor
from workers.startup import described


def test_each_replica_is_named_with_its_stage_and_those_that_said_nothing_are_counted() -> None:
    assert described([], 2) == "2 waiting for resources or starting a process"
    assert described([(IMPORTING, 3.4)], 2) == (
        "1: importing SGLang for 3 s, 1 waiting for resources or starting a process"
    )


def test_a_replica_that_replaces_a_dead_one_is_shown_in_its_place() -> None:
    stages = [(LOADING, 60.0), (READY, 9.0), (FIRST_TOKEN, 1.0)]
    assert described(stages, 2) == "2: ready for 9 s, 3: making the first token for 1 s"


def test_replicas_that_are_all_ready_are_one_word() -> None:
    assert described([(LOADING, 60.0), (READY, 9.0), (READY, 1.0)], 2) == "all ready"


def test_a_supervisor_remembers_the_last_stage_of_each_replica_and_since_when() -> None:
    now = [0.0]
    supervisor = Supervisor(expected=2, budget=1, window_s=60, clock=lambda: now[0])
    supervisor.reached("a", IMPORTING)
    now[0] = 2.0
    supervisor.reached("b", IMPORTING)
    supervisor.reached("a", LOADING)
    now[0] = 5.0
    assert supervisor.stages() == [(LOADING, 3.0), (IMPORTING, 3.0)]
