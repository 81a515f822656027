"""What rounds took, by events on a made-up device that the host runs ahead of, and by the host's clock."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from ddtree_sglang.engine.stages.round_records import Decision
from ddtree_sglang.engine.stages.round_times import MOST_AWAITED, DeviceTimes, LaunchedRound, RoundTimes, TimedRound
from tests.engine.stages.overlapped_rounds import DeviceEvent, Overlapped, timed_by_events, timed_by_the_host
from tests.engine.stages.served_rounds import running_request

pytestmark = pytest.mark.sglang

WIDTHS = (1, 2, 3, 5, 9, 17)
PLAIN, TREE = (LaunchedRound(1, 300.0, Decision(nodes, 1.0, 0.0, is_try=False)) for nodes in (1, 17))


def device_server(launching: float, scheduling: float = 0.0) -> tuple[Overlapped, DeviceTimes]:
    server = timed_by_events(
        WIDTHS, seconds_of=lambda _, nodes: nodes / 1000, launching=launching, scheduling=scheduling, noise=0.0
    )
    assert isinstance(server.budget.times, DeviceTimes)
    return server, server.budget.times


def play(server: Overlapped, times: RoundTimes, rounds: list[LaunchedRound]) -> list[TimedRound]:
    """Rounds in turn; those whose time became known."""
    known = []
    for one in rounds:
        known += times.begin()[0]
        seconds = server.seconds_of(one.batch_size, one.decision.num_nodes)
        server.launch(seconds)
        times.launched(one)
        server.finish(seconds)
    return known


@pytest.mark.parametrize("launching", [0.0005, 0.002, 0.004, 0.03])
def test_a_round_takes_as_long_as_the_slower_one_of_host_and_device_takes_for_it(launching: float) -> None:
    """One plain round of 1 ms among trees of 17: by the host's clock it is its neighbours' time where the host is
    slower, or the other way round.
    """
    server, times = device_server(launching, scheduling=0.0)
    known = play(server, times, 5 * [TREE] + [PLAIN] + 5 * [TREE])
    assert [one.round for one in known] == (5 * [TREE] + [PLAIN] + 5 * [TREE])[: len(known)]
    assert len(known) >= 9
    for one in known:
        assert one.seconds == pytest.approx(max(launching, one.round.decision.num_nodes / 1000))
        assert 1 <= one.rounds_ago <= 2


def test_behind_a_prefill_the_host_is_ahead_and_rounds_take_what_they_take() -> None:
    server, times = device_server(0.0005)
    play(server, times, 3 * [PLAIN])
    server.prefill(0.2)
    known = play(server, times, 6 * [PLAIN])
    seconds = [one.seconds for one in known]
    assert seconds == pytest.approx(len(seconds) * [0.001]), "nor is the prefill a round's time"
    by_host = timed_by_the_host(WIDTHS, seconds_of=server.seconds_of, launching=0.0005, noise=0.0)
    play(by_host, by_host.budget.times, 3 * [PLAIN])
    by_host.prefill(0.2)
    off = play(by_host, by_host.budget.times, 6 * [PLAIN])
    assert any(one.seconds < 0.0009 or one.seconds > 0.0011 for one in off), "the host's clock knows no better"


def test_the_round_before_something_else_is_no_sample_and_the_pause_is_told() -> None:
    server, times = device_server(0.002)
    assert len(play(server, times, 3 * [TREE])) == 1
    server.now += 5.0
    times.interrupt()
    timed, rested = times.begin()
    assert [one.seconds for one in timed] == pytest.approx([0.017]), "the second; nobody knows when the third ended"
    assert rested is not None
    assert rested > 5.0
    server.now += 5.0
    assert times.begin() == ([], None)


def test_a_round_that_was_never_launched_and_one_that_never_ends_are_no_samples() -> None:
    server, times = device_server(0.002)
    times.begin()
    server.now += 1.0
    assert play(server, times, 3 * [TREE])[0].seconds < 0.1
    server.device_free = float("inf")
    for _ in range(5 * MOST_AWAITED):
        times.begin()
        times.launched(PLAIN)
    assert len(times._starts) == MOST_AWAITED


def test_where_the_host_waits_in_a_round_its_launching_says_nothing() -> None:
    server = Overlapped(timed_by_events(WIDTHS, seconds_of=lambda *_: 0.0).budget, lambda *_: 0.001, launching=0.004)
    times = DeviceTimes(lambda: DeviceEvent(server), lambda: server.now, host_waits=True)
    server.device_free = server.now + 1.0  # of what lies before
    times.begin()
    server.launch(0.001)
    times.launched(PLAIN)
    times.begin()
    server.now += 2.0
    (one,), _ = times.begin()
    assert one.seconds == pytest.approx(0.001)


def of_fixed(nodes: int, **options: Any) -> float:
    """Tokens per second of so many nodes in every round."""
    server = timed_by_the_host((1, nodes) if nodes > 1 else (1,), **options)
    reqs = [running_request() for _ in range(8)]
    for _ in range(200):
        server.budget.begin_fixed(reqs, [nodes] * 8, 300.0, nodes)
        seconds = server.seconds_of(8, nodes)
        if nodes > 1:
            server.tokens += int(server.accepted(server.drafted(8, nodes)).commit_lens.sum())
        else:
            server.tokens += 8
        server.launch(seconds)
        server.budget.end(None)
        server.finish(seconds)
    return server.rate


HOST_IS_SLOWER = {"launching": 0.004, "scheduling": 0.001}


def quick(requests: int, nodes: int) -> float:
    """A small model on a large GPU: no round takes longer than its launch."""
    return 0.0015 + (0.0005 if nodes > 1 else 0.0) + 0.00002 * nodes * requests


def mixed(requests: int, nodes: int) -> float:
    """Plain rounds wait for the host, trees for the device."""
    return 0.002 if nodes == 1 else 0.004 + 0.0003 * nodes * requests


def heavy(requests: int, nodes: int) -> float:
    """All rounds wait for the device."""
    return 0.010 + (0.003 if nodes > 1 else 0.0) + 0.0001 * nodes * requests


@pytest.mark.parametrize("seconds_of", [quick, mixed, heavy])
def test_a_controller_that_asks_the_device_is_near_the_best_of_fixed_widths(seconds_of: Any) -> None:
    options = {**HOST_IS_SLOWER, "seconds_of": seconds_of}
    best = max(of_fixed(nodes, **options) for nodes in WIDTHS)
    rates = []
    for seed in range(4):
        server = timed_by_events(WIDTHS, seed=seed, **options)
        reqs = [running_request() for _ in range(8)]
        server.rounds(300, reqs)
        server.tokens, server.started = 0, server.now
        rates.append(server.rounds(300, reqs).rate / best)
    assert fmean(rates) > 0.95
